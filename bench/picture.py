"""README's picture: a held-out document's pages as the model sees them, and what it answers.

    python bench/picture.py                    # writes bench/picture.png

The model is tiny-reader, which comes with the package; the document is one of the embedded corpus'
that it never trained on; pages, answer and reference are what `generate` would give, nothing is
retouched. The text below the pages is drawn by the same renderer.
"""

import argparse
from pathlib import Path

import numpy as np

from deepsynth_min.corpus.documents import documents
from deepsynth_min.data import SampleBuilder
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import collate
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.model.generation import generate
from deepsynth_min.model.shape.presets import TINY_READER, find_checkpoint
from deepsynth_min.pages import PageStyle, render_pages
from deepsynth_min.pages.png import png
from deepsynth_min.settings import GenerationSettings, Settings

GAP = 16  # px of grey between and around the pages
ROW = 3  # pages side by side
GREY = 214


def answer_of(document) -> tuple[np.ndarray, str, int]:
    """(pages [N, s, s], the model's answer, visual tokens) of one document."""
    directory = find_checkpoint(TINY_READER)
    model = DeepseekOCR.from_pretrained(directory).float().eval()
    builder = SampleBuilder(Settings(), model.config, load_tokenizer(directory))
    prompt = builder.prompt(Row("document", document.summary, document.text))
    settings = GenerationSettings(beams=4)
    (answer,) = generate(model, collate([prompt], builder.special), settings)
    text = builder.tokenizer.decode(answer.ids, skip_special_tokens=True)
    return prompt.pages[:, 0], text, prompt.visual


def compose(pages: np.ndarray, caption: str) -> np.ndarray:
    """Pages in rows on grey, the caption below them: uint8 [H, W]."""
    count, side, _ = pages.shape
    rows, step = -(-count // ROW), side + GAP
    canvas = np.full((rows * step + GAP, ROW * step + GAP), GREY, np.uint8)
    for i, page in enumerate(pages):
        top, left = GAP + i // ROW * step, GAP + i % ROW * step
        canvas[top : top + side, left : left + side] = page
    width = canvas.shape[1]
    style = PageStyle(width=width, height=400, margin=GAP, font_size=17, crop_last=True)
    (text,) = render_pages(caption, style).images()
    return np.concatenate([canvas, text, np.full((GAP, width), 255, np.uint8)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--document", type=int, default=0, help="number of the held-out document")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("picture.png"))
    given = parser.parse_args()
    document = documents("val")[given.document]
    pages, answer, visual = answer_of(document)
    caption = (
        f"{len(document.text)} characters on {len(pages)} pages, {visual} visual tokens.\n"
        f"Answer: {answer}\nReference: {document.summary}"
    )
    given.out.write_bytes(png(compose(pages, caption)))
    print(caption)


if __name__ == "__main__":
    main()
