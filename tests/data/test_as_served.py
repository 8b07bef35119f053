"""What is trained is what is served: official prompts, markers in answers, rows without a page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import SMALL
from tokenizers import AddedToken, Tokenizer

from deepsynth_min.data.row import Row, RowError, prompt_after_pages
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import EMBEDDED, decode, encode, load_tokenizer
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.settings import Settings

CASES = Path(__file__).parents[1] / "cases"


# Prompts of the official model card, and how the official code makes a sequence of one: it strips
# the prompt, puts a page's tokens where each <image> stood and encodes what lies between.
PROMPTS = (
    "<image>\nFree OCR. ",
    "<image>\n<|grounding|>Convert the document to markdown. ",
    "<image>\nOCR this image. ",
    "<image>\nParse the figure. ",
    "<image>\nLocate <|ref|>xxxx<|/ref|> in the image. ",
    "<image>document parsing.",
)


def official_ids(prompt: str, answer: str, visual: int, tokenizer) -> list[int]:
    """Written after the official code: infer() and its split at <image>."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    before, after = prompt.strip().split("<image>")
    ids = [*plain(before), *[image] * visual, *plain(after)]
    return [tokenizer.bos_token_id, *ids, *plain(answer), tokenizer.eos_token_id]


@pytest.fixture(scope="module")
def with_markers(tmp_path_factory):
    """The embedded tokenizer with the official model's markers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(EMBEDDED / name, folder)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = "<|ref|> <|/ref|> <|det|> <|/det|> <|grounding|> <table> </table> <tr> </tr> <td> </td>"
    made.add_special_tokens([AddedToken(m, special=True) for m in marks.split()])
    made.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_official_prompts_and_answers_give_the_ids_of_the_official_code(with_markers, prompt):
    config = replace(PRESETS["tiny"], decoder=replace(PRESETS["tiny"].decoder, vocab_size=8192))
    (line, *_) = (CASES / "layout-answers.jsonl").read_text().splitlines()
    answer = json.loads(line)["summary"]
    for own in (True, False):  # as a row's instruction, and as the run's
        settings = Settings() if own else change(Settings(), instruction=prompt)
        builder = SampleBuilder(settings, config, with_markers)
        image = (CASES / "images" / "0.png",)
        sample = builder(Row("f:1", answer, images=image, instruction=prompt if own else None))
        assert sample.ids == official_ids(prompt, answer, sample.visual, with_markers)
    known = with_markers.get_added_vocab()
    assert [sample.ids.count(known[m]) for m in ("<|det|>", "<td>", "<table>")] == [1, 2, 1]
    assert decode(with_markers, sample.ids[sample.prompt :]) == answer


def test_a_row_without_a_page_is_instruction_and_answer():
    tokenizer = load_tokenizer()
    builder = SampleBuilder(change(Settings(), mode="128"), SMALL, tokenizer)
    sample = builder(Row("f:1", "Paris.", instruction="Name the capital of France. "))
    asked, answer = encode(tokenizer, "Name the capital of France."), encode(tokenizer, "Paris.")
    assert sample.ids == [builder.special.bos, *asked, *answer, builder.special.eos]
    assert sample.visual == 0 and len(sample.pages) == 0
    drawn = builder(Row("f:2", "Words.", "A short document."))
    both = collate([sample, drawn], builder.special)
    assert len(both.pages) == 1 and both.owners == (1,)
    model = DeepseekOCR(SMALL)
    for batch in (both, collate([sample], builder.special), both.packed()):
        total, count = model.loss(batch)
        assert count == batch.num_scored and torch.isfinite(total)


@pytest.mark.parametrize(
    "instruction, pages, rest",
    [
        ("<image>\nFree OCR. ", 1, "\nFree OCR."),
        (" Free OCR.\n", 1, "\nFree OCR."),
        ("<image>document parsing.", 1, "document parsing."),
        ("<image>\n<image>\nCompare.", 2, "\nCompare."),
        ("<image>", 1, ""),
    ],
)
def test_a_leading_placeholder_is_left_out(instruction, pages, rest):
    assert prompt_after_pages(instruction, pages, "f:1") == rest


@pytest.mark.parametrize("instruction", ["What is <image>?", "<image>\nThis <image>", "a <image>"])
def test_a_placeholder_elsewhere_is_refused(instruction):
    with pytest.raises(RowError, match="f:1: <image> in the middle of the instruction"):
        prompt_after_pages(instruction, 1, "f:1")
    with pytest.raises(RowError, match="f:1: 3 times <image> for 2 images"):
        prompt_after_pages("<image><image><image>x", 2, "f:1")
