"""Commands that read or export a run say which checkpoint they took, and which one is better."""

import json

from adapter_runs import run, write_base, write_rows
from commands import words
from run_files import lines
from small_model import SMALL

from deepsynth_min import evaluate, export, generate
from deepsynth_min.runs.storage.taken import which_checkpoint


def test_commands_say_which_checkpoint_they_took_and_which_is_better(tmp_path, capsys):
    """Steps too small to change the loss: it is never better than after the first."""
    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    out = run(
        tmp_path, *words("--max-steps 3 --eval-every 1 --save-every 1 --lr 1e-30 --weight-decay 0")
    )
    loss = f"{lines(out, 'eval')[1]['loss']:.4f}"
    capsys.readouterr()
    last = f"checkpoint: step 3 (last); the best by loss is step 1 ({loss}): --checkpoint best"
    best = f"checkpoint: step 1 (best by loss: {loss})"
    for which, line in (("last", last), ("best", best), ("1", best)):
        assert evaluate.main(["--run", str(out), "--checkpoint", which]) == 0
        printed = capsys.readouterr()
        assert line in printed.err.splitlines() and printed.out.count("\n") == 1
        assert json.loads(printed.out)["loss"] > 0
    (tmp_path / "a.txt").write_text("A text.")
    given = words("--run {} --max-new-tokens 1 {}", out, tmp_path / "a.txt")
    assert generate.main(given) == 0
    assert capsys.readouterr().err.splitlines()[0] == last
    assert generate.main([*given, "--checkpoint", "best"]) == 0
    assert "checkpoint" not in capsys.readouterr().err
    assert export.main(words("--run {} --to {}", out, tmp_path / "e")) == 0
    assert capsys.readouterr().err.splitlines() == [last]
    card = (tmp_path / "e" / "README.md").read_text("utf-8")
    assert f"| checkpoint | step 3 (last); the best by loss is step 1 ({loss}) |" in card


def test_a_run_without_evaluations_has_no_better_checkpoint(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-000040"
    checkpoint.mkdir(parents=True)
    (tmp_path / "last").write_text("step-000040\n")
    assert which_checkpoint(tmp_path, checkpoint, "loss") == "checkpoint: step 40 (last)"
    (tmp_path / "best").write_text("step-000040\n")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "step": 40, "cer": 0.25}\n')
    expected = "checkpoint: step 40 (last, best by cer: 0.2500)"
    assert which_checkpoint(tmp_path, checkpoint, "cer") == expected
