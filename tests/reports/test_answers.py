"""Answers in the report: whole, escaped, and marked where they differ from their references."""

import json
import time

import pytest
from test_report import Page, make_run

from deepsynth_min.evaluation.text_metrics import edit_distance
from deepsynth_min.reports import answers as A
from deepsynth_min.reports.page import page as render_report


def texts_of(text: str) -> list[str]:
    """References and answers in turn, as a reader of the page sees and copies them."""
    return [e["text"] for e in Page(text).found if e.get("class") == "text"]


def answer(number: int, reference: str, text: str, step: int = 30) -> dict:
    return {"step": step, "number": number, "row": f"a.jsonl:{number}", "reference": reference} | {
        "answer": text,
        "ended": number != 2,
        "cer": 0.125,
    }


@pytest.fixture
def run(tmp_path):
    """A run whose best evaluation is not the last one; seven answers of each are kept."""
    path = make_run(tmp_path / "run", 4.0)
    line = {"kind": "eval", "step": 20, "loss": 3.0, "cer": 0.25}
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + text)
    (path / "best").write_text("step-000020\n")
    (path / "answers").mkdir()
    for name, step in (("last", 30), ("best", 20)):
        rows = [answer(i, f"# A\n\n- {i}\ttea", f"# A\n- {i} {name}", step) for i in range(7)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"answers/{name}.jsonl").write_text(lines)
    return path


def test_all_answers_of_the_last_and_the_best_evaluation_are_there_with_their_line_ends(run):
    text = render_report(run)
    found = texts_of(text)
    for half, name in ((found[:14], "last"), (found[14:], "best")):
        assert half[::2] == [f"# A\n\n- {i}\ttea" for i in range(7)]
        assert half[1::2] == [f"# A\n- {i} {name}" for i in range(7)]
    assert "white-space: pre-wrap" in text and "3 more answers" in text
    assert "Answers of the best checkpoint, step 20" in text
    titles = Page(text).texts("h4")
    assert titles[0] == "held-out row 0 · a.jsonl:0 · CER 0.125 · ended by itself"
    assert "cut off" in titles[2] and "cut off" not in titles[3]


def test_the_page_of_an_answer_is_that_of_its_row(run):
    blocks = render_report(run).split('<div class="answer">')[1:8]
    assert ["held-out-0.png" in block for block in blocks] == [True] + [False] * 6


def test_answers_of_another_evaluation_are_not_taken_for_those_of_the_last(run):
    """A run that was killed and goes on from an earlier step; and runs of before, which keep four
    answers in metrics.jsonl alone."""
    (run / "answers" / "last.jsonl").write_text(json.dumps(answer(0, "x", "y", 50)) + "\n")
    (run / "answers" / "best.jsonl").unlink()
    assert texts_of(render_report(run)) == ["<b>Tea & cake</b>", "<script>alert(1)"]
    (run / "answers" / "last.jsonl").write_text("\n[]\n{\n" + '{"step": "30"}\n')
    assert texts_of(render_report(run)) == ["<b>Tea & cake</b>", "<script>alert(1)"]


def test_answers_are_escaped_and_what_html_cannot_hold_is_shown(run):
    evil = "<script>alert(1)</script>&amp;</div></ins>\x00\x1b\r\"'\u202e"
    row = answer(0, "<b>&</b>", evil)
    row["row"] = "<img src=x onerror=alert(1)>"
    (run / "answers" / "last.jsonl").write_text(json.dumps(row) + "\n")
    text = render_report(run)
    assert not [e for e in Page(text).found if e["tag"] == "script" or "onerror" in e]
    shown = evil.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\r", "\ufffd")
    assert texts_of(text)[:2] == ["<b>&</b>", shown]


def test_the_first_documents_are_shown_with_their_answers_before_and_after(run):
    kept = [line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["step"]]
    kept = [{"kind": "eval", "step": 10, "loss": 9.0}, *kept]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert "Before and after" not in render_report(run)  # no answers of step 10
    first = [answer(i, f"# A\n\n- {i}\ttea", f"<old {i}>", 10) for i in (1, 0, 2, 4, 5)]
    (run / "answers" / "first.jsonl").write_text("".join(json.dumps(a) + "\n" for a in first))
    part = render_report(run).split("Before and after: steps 10 and 30</h3>")[1].split("<h3>")[0]
    assert texts_of(part) == [
        text for i in (0, 1, 2) for text in (f"<old {i}>", f"# A\n- {i} last", f"# A\n\n- {i}\ttea")
    ]
    assert part.count("held-out-0.png") == 1 and "<ins>" in part and "<del>" in part


def marks(text: str, tag: str) -> list[str]:
    return Page(text).texts(tag)


def test_exactly_the_letters_that_the_error_rate_counts_are_marked():
    ours, theirs = A.marked(" The old mill\nran dry ", "The cold mil\nran <dry>")
    assert marks(ours, "del") == ["l"] and marks(theirs, "ins") == ["c", "<", ">"]
    assert edit_distance("The old mill\nran dry", "The cold mil\nran <dry>") == 4
    ours, theirs = A.marked("one\ntwo", "one two")
    assert marks(ours, "del") == ["\n"] and marks(theirs, "ins") == [" "]
    assert '<i class="end"></i>\n</del>' in ours  # a line end that lacks can be seen
    assert A.marked("same", "same") == ("same", "same")
    assert A.marked("", "") == ("", "") and marks(A.marked("", "new")[1], "ins") == ["new"]


def test_long_answers_are_marked_in_part_and_that_is_said():
    reference, text = "All work and no play. " * 1400, "All work, and no plays. " * 1300
    began = time.perf_counter()
    ours, theirs = A.marked(reference, text)
    assert time.perf_counter() - began < 20  # of 30,000 characters; 0.1 s on an idle machine
    for marked, whole in ((ours, reference), (theirs, text)):
        page = Page(f"<div>{marked}</div>")
        note = page.texts("i")[-1]
        assert note == "[differences are marked up to here: 10,000 characters]"
        assert page.found[0]["text"].replace(note, "") == whole.strip()
        assert len(marked.split('<i class="what">')[0].replace("&", "")) >= A.MARKED
    assert "differences are marked" not in "".join(A.marked("x" * 10_000, "y" * 9_000))


def test_however_many_and_long_the_answers_the_page_is_made_in_bounded_time(tmp_path):
    shown = [answer(i, "ab " * 3_000, "ba " * 3_000) for i in range(150)]
    began = time.perf_counter()
    text = A.answers(shown, tmp_path)
    assert time.perf_counter() - began < 30
    assert text.count('<div class="answer">') == A.LISTED and "96 more answers; of 150" in text
    plain = text.count("(differences not marked)")
    assert plain == A.LISTED - A.MARKED_IN_ALL // 9_000
