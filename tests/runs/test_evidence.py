"""A run that hangs or dies leaves stacks and collectives; a profile of a step can be opened."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from commands import LAUNCHER, start, words
from run_files import lines

from deepsynth_min import train
from deepsynth_min.model.deepseek_ocr import DeepseekOCR

COMMON = words(
    "--model tiny --tune lora --batch-size 2 --val-samples 2 --answer-samples 0 --eval-every 0 "
    "--ablation-samples 0 --log-every 1 --save-every 0 --threads 1"
)

# A training in which rank 1 stops in the backward pass of its fifth step, as if it hung there.
STOPS = """
import os, signal, sys
from deepsynth_min import train
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
honest, calls = DeepseekOCR.loss_terms, []
def loss_terms(self, *given, **named):
    loss, *more = honest(self, *given, **named)
    calls.append(loss.requires_grad)
    if sum(calls) == 5 and os.environ["RANK"] == "1":
        loss.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGSTOP))
    return loss, *more
DeepseekOCR.loss_terms = loss_terms
sys.exit(train.main(sys.argv[1:]))
"""


def stopped_process(launcher: int) -> int:
    """The child of a process that is stopped, once one is."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    for _ in range(6000):
        for number in children.read_text().split():
            if "State:\tT" in Path(f"/proc/{number}/status").read_text():
                return int(number)
        time.sleep(0.01)
    raise AssertionError("no process has stopped")


@pytest.mark.slow
def test_a_rank_that_hangs_in_backward_is_named_and_those_that_live_leave_their_stacks(
    tmp_path, jsonl
):
    script, out = tmp_path / "stops.py", tmp_path / "r"
    script.write_text(STOPS)
    given = words("--max-steps 50 --timeout 5 --data {} --out {}", jsonl, out)
    process = start(*LAUNCHER, 2, script, *COMMON, *given)
    hung, seen = stopped_process(process.pid), []
    began = time.monotonic()
    for line in process.stderr:
        seen.append(line)
        if "lost another process" in line:
            break
    took = time.monotonic() - began
    os.kill(hung, signal.SIGKILL)  # it heeds no signal of the launcher's
    errors = "".join(seen) + process.communicate(timeout=60)[1]
    assert process.returncode == 1 and took < 5 + 10 + 15  # --timeout, the roll call, to spare
    assert re.search(r"rank 0 lost another process: .*Ranks? 1\b", errors), errors
    assert len(lines(out, "train")) == 4
    stacks = (out / "evidence" / "stacks-rank-0.txt").read_text()
    waiting = stacks.partition("Timeout (0:00:05)!")[2].partition("Traceback")[0]
    assert "in train_step" in waiting and "in finish" in waiting  # where it waits for the gradients
    assert "RuntimeError" in stacks and "rank 0: " in errors
    record = json.loads((out / "evidence" / "collectives-rank-0.json").read_text())
    assert any("all_reduce" in entry["profiling_name"] for entry in record["entries"])
    status = json.loads((out / "status.json").read_text())
    assert (status["status"], status["step"]) == ("failed", 4)


def test_a_step_that_hangs_alone_leaves_its_stacks_while_it_does(tmp_path, jsonl, monkeypatch):
    honest = DeepseekOCR.loss_terms

    def slow(*given, **named):
        if torch.is_grad_enabled():
            time.sleep(1.5)
        return honest(*given, **named)

    monkeypatch.setattr(DeepseekOCR, "loss_terms", slow)
    given = words("--max-steps 1 --timeout 1 --data {} --out {}", jsonl, tmp_path / "r")
    assert train.main([*COMMON, *given]) == 0
    stacks = (tmp_path / "r" / "evidence" / "stacks-rank-0.txt").read_text()
    assert "Timeout (0:00:01)!" in stacks and "in slow" in stacks


def failing(error: Exception):
    def loss_terms(*_, **__):
        raise error

    return loss_terms


def test_an_error_leaves_its_traceback_and_the_stacks_behind_it(tmp_path, jsonl, monkeypatch):
    monkeypatch.setattr(DeepseekOCR, "loss_terms", failing(RuntimeError("of its own")))
    given = words("--max-steps 1 --val-samples 1 --data {} --out {}", jsonl, tmp_path / "r")
    with pytest.raises(RuntimeError, match="of its own"):
        train.main([*COMMON, *given])
    stacks = (tmp_path / "r" / "evidence" / "stacks-rank-0.txt").read_text()
    assert "RuntimeError: of its own" in stacks and "Current thread" in stacks


def test_want_of_memory_on_the_cpu_leaves_stacks_and_no_snapshot(tmp_path, jsonl, monkeypatch):
    monkeypatch.setattr(DeepseekOCR, "loss_terms", failing(MemoryError()))
    given = words("--max-steps 1 --val-samples 1 --data {} --out {}", jsonl, tmp_path / "r")
    assert train.main([*COMMON, *given]) == 2
    (file,) = (tmp_path / "r" / "evidence").iterdir()
    assert file.name == "stacks-rank-0.txt" and "MemoryError" in file.read_text()


def test_a_run_that_ends_well_leaves_no_evidence(tmp_path, jsonl):
    given = words("--max-steps 1 --data {} --out {}", jsonl, tmp_path / "r")
    assert train.main([*COMMON, *given]) == 0
    assert not (tmp_path / "r" / "evidence").exists()


def test_a_profile_of_the_step_that_was_asked_for_can_be_opened(tmp_path, jsonl):
    out = tmp_path / "r"
    given = words("--max-steps 3 --profile-step 2 --data {} --out {}", jsonl, out)
    assert train.main([*COMMON, *given]) == 0
    (file,) = (out / "profile").iterdir()
    assert file.name == "step-2-rank-0.json"
    events = json.loads(file.read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert any(n.startswith("aten::") for n in names) and any("Backward" in n for n in names)
    assert sum("Optimizer.step" in name for name in names) == 1
