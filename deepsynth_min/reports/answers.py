"""Answers beside their pages and references, with every letter marked in which they differ.

In: answers as an evaluation leaves them. Out: HTML.

The one idea: the marks are an alignment with the fewest edits, so what is marked is what the
character error rate counts. Each text stays whole and readable: in the reference the letters that
the answer lacks are marked, in the answer those that the reference does not have.
"""

import html
import unicodedata
from pathlib import Path

from ..evaluation.text_metrics import alignment
from ..pages.png import in_html

OPEN = 4  # answers that are shown at once; the others unfold
LISTED = 100  # answers that are in the page at all
COMPARED = 3  # documents whose answers before and after training are set side by side
MARKED = 10_000  # characters of a text in which differences are marked: time and memory grow as n²
MARKED_IN_ALL = 100_000  # characters of answers that are compared for one page

ANSWER_STYLE = """
.answer { border-top: 1px solid var(--line); padding: .6rem 0 1rem; }
.answer h4 { margin: 0 0 .4rem; font-weight: 500; color: var(--soft); overflow-wrap: anywhere; }
.beside { display: grid; gap: .8rem 1.2rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.beside.paged { grid-template-columns: 260px repeat(2, minmax(0, 1fr)); }
.beside.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.beside.paged.three { grid-template-columns: 260px repeat(3, minmax(0, 1fr)); }
.beside img, .pages img { width: 260px; max-width: 100%; border: 1px solid var(--line); }
.beside b { font-weight: 600; font-size: .85rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 32rem; overflow-y: auto; }
ins, del { text-decoration-thickness: 2px; text-underline-offset: 3px; border-radius: 2px; }
ins { background: var(--more); text-decoration: underline solid; }
del { background: var(--less); text-decoration: underline wavy 1px; }
.end::before { content: "\\21B5"; }
summary { cursor: pointer; margin: .4rem 0; }
@media (max-width: 800px) { .beside, .beside.paged, .beside.three, .beside.paged.three {
  grid-template-columns: minmax(0, 1fr); } }
"""
HOW_TO_READ = (
    "<p>Marked, letter by letter: <del>in the reference</del> what the answer lacks or has "
    "otherwise (wavy line), <ins>in the answer</ins> what the reference does not have (straight "
    'line); <del><i class="end"></i></del> is the end of a line.</p>'
)


def visible(text: str) -> str:
    """The text, as long as it was, with U+FFFD for what an HTML page cannot hold."""
    good = (c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in text)
    return "".join(c if kept else "\ufffd" for c, kept in zip(text, good))


def image(path: Path) -> str:
    """A PNG file as part of the page; "" if it is not there."""
    if not path.exists():
        return ""
    return in_html(path.read_bytes(), path.name)


def _mark(tag: str, piece: str) -> str:
    """A piece that differs; the end of a line gets a sign that can be seen."""
    if not piece:
        return ""
    inside = html.escape(visible(piece)).replace("\n", '<i class="end"></i>\n')
    return f"<{tag}>{inside}</{tag}>"


def marked(reference: str, answer: str) -> tuple[str, str]:
    """HTML of (reference, answer) without the white space around them, which no error rate counts.

    Their differences are marked in the first MARKED characters; where that is not all, the place
    where it ends is said.
    """
    reference, answer = reference.strip(), answer.strip()
    ours, theirs = [], []
    for equal, of_reference, of_answer in alignment(reference[:MARKED], answer[:MARKED]):
        if equal:
            ours.append(html.escape(visible(of_reference)))
            theirs.append(ours[-1])
        else:
            ours.append(_mark("del", of_reference))
            theirs.append(_mark("ins", of_answer))
    for parts, text in ((ours, reference), (theirs, answer)):
        if max(len(reference), len(answer)) > MARKED and len(text) > MARKED:
            note = f"[differences are marked up to here: {MARKED:,} characters]"
            parts.append(f'<i class="what">{note}</i>{html.escape(visible(text[MARKED:]))}')
    return "".join(ours), "".join(theirs)


def plain(reference: str, answer: str) -> tuple[str, str]:
    """The same without marks."""
    return html.escape(visible(reference.strip())), html.escape(visible(answer.strip()))


def _block(pages: Path, found: dict, number: int, columns: dict[str, str]) -> str:
    """One answer: its page, if that is kept, and texts by their names, side by side."""
    title = [f"held-out row {number}", str(found.get("row", "")), str(found.get("instruction", ""))]
    if isinstance(found.get("cer"), float):
        title.append(f"CER {found['cer']:.3f}")
    if "ended" in found:
        title.append("ended by itself" if found["ended"] else "cut off: it did not end by itself")
    texts = "".join(
        f'<div><b>{name}</b><div class="text" dir="auto">{text}</div></div>'
        for name, text in columns.items()
    )
    picture = image(pages / f"held-out-{number}.png")
    page = f"<div>{picture}</div>" if picture else ""
    form = "beside" + " paged" * bool(picture) + " three" * (len(columns) == 3)
    return (
        f'<div class="answer"><h4>{html.escape(visible(" · ".join(filter(None, title))))}</h4>'
        f'<div class="{form}">{page}{texts}</div></div>'
    )


def pairs(first: list[dict], last: list[dict]) -> list[tuple[dict, dict]]:
    """(answer before, answer after) to the first COMPARED documents that have both."""
    before = {found["number"]: found for found in first if "number" in found}
    return [(before[a["number"]], a) for a in last if a.get("number") in before][:COMPARED]


def before_and_after(first: list[dict], last: list[dict], pages: Path) -> str:
    """The answers to the same documents in the first evaluation and in the last; "" if there are
    none. Marked is what the last ones have otherwise than their references."""
    blocks = []
    for before, after in pairs(first, last):
        reference, answer = marked(after["reference"], after["answer"])
        texts = {"before": html.escape(visible(before["answer"].strip()))}
        texts |= {"after": answer, "reference": reference}
        blocks.append(_block(pages, after, after["number"], texts))
    return "".join(blocks)


def answers(shown: list[dict], pages: Path) -> str:
    """The answers of one evaluation, in the order of their rows; all but the first unfold.

    shown: dictionaries with `reference` and `answer`; pages: the folder of kept pages.
    """
    blocks, left = [], MARKED_IN_ALL
    for place, found in enumerate(shown[:LISTED]):
        reference, answer = found["reference"], found["answer"]
        number = found.get("number", place)  # runs of before do not have it
        left -= min(len(answer), MARKED)
        form, note = (marked, "") if left >= 0 else (plain, " (differences not marked)")
        texts = dict(zip(("reference", "answer" + note), form(reference, answer)))
        blocks.append(_block(pages, found, number, texts))
    rest = blocks[OPEN:]
    more = f"{len(rest)} more answer{'s' * (len(rest) > 1)}"
    if len(shown) > LISTED:
        more += f"; of {len(shown):,}, the others are in the folder answers/ of the run"
    folded = f"<details><summary>{more}</summary>{''.join(rest)}</details>" if rest else ""
    return "".join(blocks[:OPEN]) + folded
