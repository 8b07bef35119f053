"""status.json of a run that fails on the way."""

import json

import pytest
from commands import words

from deepsynth_min import train


def test_a_run_that_an_image_ends_has_failed_and_says_why(tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    rows = []
    for i in range(8):
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "summary": f"Page {i}."})
    whole = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(whole[: len(whole) // 2])
    data, val, out = (tmp_path / name for name in ("rows.jsonl", "val.jsonl", "run"))
    val.write_text(json.dumps(rows[0] | {"summary": "The first page."}) + "\n")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (
        "--model tiny --tune lora --max-steps 20 --batch-size 1 --log-every 1 --answer-samples 0"
    )
    held_out = "--val-data {} --val-samples 1 --ablation-samples 0 --threads 1 --data {} --out {}"
    assert train.main(words(f"{given} {held_out}", val, data, out)) == 2
    assert "5.png" in capsys.readouterr().err
    status = json.loads((out / "status.json").read_text())
    assert status["status"] == "failed" and "5.png" in status["reason"]
    assert 0 < status["step"] < 20 == status["of"]
