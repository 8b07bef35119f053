"""One run under torchrun that may have one to four machines: they are killed, and others come.

A machine is an agent (torchrun) with one process; to kill it is SIGKILL to both, so that nobody is
told. torchrun misses a lost one after 15 s and waits 30 s for one that may come.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adapter_runs import write_base, write_rows
from commands import TRAIN, free_port, ranks_of, words
from run_files import lines, losses, weights
from small_model import SMALL

from deepsynth_min import train

pytestmark = pytest.mark.slow

STEPS = 120
GIVEN = words(
    "--tune decoder --global-batch 24 --log-every 1 --save-every 10 --eval-every 0 "
    "--val-samples 2 --answer-samples 0 --ablation-samples 0 --threads 1 --timeout 60 "
    "--max-steps {}",
    STEPS,
)


class Machines:
    """torchrun agents of one run, that come and go."""

    def __init__(self, out: Path, names: list[str], number: str):
        """number: of machines, as torchrun takes it."""
        self.out, self.log = out, out.with_suffix(".log")
        launcher = words("--nnodes {} --nproc-per-node 1 --max-restarts 9", number)
        launcher += words("--rdzv-backend c10d --rdzv-id papers")
        self.port = free_port()
        launcher += ["--rdzv-endpoint", f"localhost:{self.port}"]
        given = [*names, *words("--batch-size 1 --out {} --resume auto", out)]
        self.command = [*words("-m torch.distributed.run"), *launcher, *TRAIN, *GIVEN, *given]
        self.running: list[subprocess.Popen] = []

    def add(self) -> None:
        with open(self.log, "ab") as log:
            environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            command = [sys.executable, *map(str, self.command)]
            self.running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def add_first(self) -> None:
        """The one that keeps the rendezvous, and must live."""
        self.add()
        with socket.socket() as one:
            while one.connect_ex(("localhost", self.port)):
                self.pause()

    def kill(self) -> None:
        """The newest one."""
        machine = self.running.pop()
        for number in (machine.pid, *ranks_of(machine)):
            os.kill(number, signal.SIGKILL)
        machine.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, processes: int, times: int, steps: int) -> None:
        """Until so many processes have begun for the given time, and made some steps."""
        said = f"{processes} process" + ("es" if processes > 1 else "") + " on cpu"
        while self.text().count(said) < times:
            self.pause()
        known = self.step()
        while self.step() < known + steps:
            self.pause()

    def step(self) -> int:
        made = lines(self.out, "train") if (self.out / "metrics.jsonl").exists() else []
        return made[-1]["step"] if made else 0

    def pause(self) -> None:
        assert all(machine.poll() is None for machine in self.running), self.text()[-5000:]
        time.sleep(0.05)


@pytest.fixture
def names(tmp_path) -> list[str]:
    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    return words("--model {} --data {}", tmp_path / "base", tmp_path / "rows.jsonl")


def test_machines_that_are_killed_and_added_make_the_run_of_one_process(tmp_path, names):
    """4, 3, 4 and 2 processes under one torchrun; the sequence of samples and the losses."""
    alone = tmp_path / "alone"
    machines = Machines(tmp_path / "r", names, "1:4")
    try:
        machines.add_first()
        for _ in range(3):
            machines.add()
        machines.wait_for(4, 1, steps=2)
        machines.kill()
        machines.wait_for(3, 1, steps=2)
        machines.add()
        machines.wait_for(4, 2, steps=2)
        machines.kill()
        machines.kill()
        machines.wait_for(2, 1, steps=2)
        for machine in machines.running:
            assert machine.wait(timeout=600) == 0, machines.text()[-5000:]
    finally:
        for machine in machines.running:
            machine.kill()
    assert train.main([*GIVEN, *names, *words("--batch-size 8 --out {}", alone)]) == 0
    begun = re.findall(r"(\d) processe?s? on cpu", machines.text())
    assert begun == ["4", "3", "4", "2"], begun
    ours, theirs = lines(tmp_path / "r", "train"), lines(alone, "train")
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert [line["samples"] for line in ours] == [24 * n for n in range(1, STEPS + 1)]
    assert losses(tmp_path / "r", "train") == pytest.approx([x["loss"] for x in theirs], rel=1e-6)
    final, other = (weights(run) for run in (tmp_path / "r", alone))
    assert max((final[n] - other[n]).abs().max().item() for n in other) < 1e-6


def test_machines_that_were_not_asked_to_stop_wait_for_another_and_go_on(tmp_path, names):
    """One of two is sent away, as by the drain of a node: both save, one ends, one waits."""
    machines = Machines(tmp_path / "r", names, "2")
    try:
        machines.add_first()
        machines.add()
        machines.wait_for(2, 1, steps=2)
        leaving = machines.running.pop()
        leaving.send_signal(signal.SIGTERM)
        assert leaving.wait(timeout=60) == 1 and "stopped after step" in machines.text()
        machines.pause()
        machines.add()
        for machine in machines.running:
            assert machine.wait(timeout=600) == 0, machines.text()[-5000:]
    finally:
        for machine in machines.running:
            machine.kill()
    made = lines(tmp_path / "r", "train")
    assert [line["step"] for line in made] == list(range(1, STEPS + 1))
    said = machines.text()
    assert "exitcode: 75" in said and "resuming after step" in said
