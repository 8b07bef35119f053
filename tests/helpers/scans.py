"""An image folder as users have them: scans in three layouts, with their texts beside them."""

import json
from pathlib import Path

from deepsynth_min.corpus import documents as corpus
from deepsynth_min.pages.png import png
from deepsynth_min.pages.renderer import PageStyle, render_pages

# What tiny-reader learned to read; wider lines in smaller type; white on black in a low page.
LAYOUTS = {
    "plain": PageStyle(width=256, height=256, margin=4, font_size=24, line_height=2.667),
    "wide": PageStyle(width=320, height=256, margin=8, font_size=20, align="justify"),
    "dark": PageStyle(width=256, height=192, margin=8, font_size=22, invert=True),
}
PAGES = {"train": 60, "validation": 18}


def draw_scans(folder: Path) -> None:
    """train/ and validation/, each an image folder with its metadata.jsonl."""
    for (split, number), source in zip(PAGES.items(), ("train", "val")):
        (folder / split).mkdir(parents=True)
        rows = []
        for i, document in enumerate(corpus.documents(source)[:number]):
            layout = list(LAYOUTS)[i % len(LAYOUTS)]
            text = " ".join(document.text[:45].split()).rpartition(" ")[0]
            pages = render_pages(text, LAYOUTS[layout])
            assert len(pages) == 1 and not len(pages.missing)
            rows.append({"file_name": f"{layout}-{i:02}.png", "text": text})
            (folder / split / rows[-1]["file_name"]).write_bytes(png(pages.pages[0]))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / split / "metadata.jsonl").write_text(text, "utf-8")
