"""Signals through torchrun, and what SLURM, Kubernetes and SSH start: it saves in time.

The scheduler's part is played by the tests: they send what it sends, and stand-ins for `srun`,
`scontrol` and `ssh` in PATH do what these do. The files are those that users copy.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import LAUNCHER, TRAIN, begun, free_port, ranks_of, start, words
from killed_runs import STEPS, assert_bit_identical, finish, options, saving
from run_files import lines, newest

import deepsynth_min
from deepsynth_min.command_line import parse
from deepsynth_min.options import to_toml
from deepsynth_min.training import checkpoint

pytestmark = pytest.mark.slow

CLUSTERS = Path(deepsynth_min.__file__).parent / "training" / "clusters"
HELPERS = Path(__file__).parent.parent / "helpers"
SLOW_SECONDS = 45  # of a save: longer than the 30 s that torchrun waits unless told otherwise
SAVED_MB = 2.28  # of an adapter on `tiny` and its optimizer's state
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
PATIENT = words("--shutdown-timeout 3600 --signals-to-handle {}", SIGNALS)
RARELY = words("--save-every 0 --eval-every 0")  # so that the one save is that of the signal


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, jsonl) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "r"
    finish(out, jsonl, 2, *RARELY)
    return out


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory) -> dict[str, str]:
    """The environment of a process to which saving a checkpoint takes SLOW_SECONDS."""
    library = tmp_path_factory.mktemp("disk") / "slow_disk.so"
    source = HELPERS / "slow_disk.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SECONDS_PER_MB": str(SLOW_SECONDS / SAVED_MB)}


def status(out: Path) -> dict:
    return json.loads((out / "status.json").read_text())


def launched(out: Path, jsonl: Path, launcher=(), **environment) -> subprocess.Popen:
    """torchrun with two processes that have begun to train."""
    given = options(out, jsonl, 1, *RARELY)
    command = [*LAUNCHER, 2, *launcher, *TRAIN, *given]
    process = start(*command, env=os.environ | environment)
    begun(process, out)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_save_that_takes_longer_than_launcher_and_timeout_wait_is_whole(
    tmp_path, jsonl, undisturbed, slow_disk, number
):
    """The ranks hear from the one that writes, so that --timeout, here 20 s, does not end them."""
    out = tmp_path / "r"
    given = options(out, jsonl, 1, *RARELY, "--timeout", 20)
    command = [*LAUNCHER, 2, *PATIENT, *TRAIN, *given]
    process = start(*command, env=os.environ | slow_disk)
    begun(process, out)
    process.send_signal(number)  # to torchrun alone
    began = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert time.monotonic() - began > 0.9 * SLOW_SECONDS and process.returncode == 1, errors
    (path,) = checkpoint.all_checkpoints(out / "checkpoints")
    assert path == newest(out) and checkpoint.damage(path) is None and not saving(out)
    assert status(out)["reason"] == f"asked to by {number.name}"
    assert status(out)["step"] == int(path.name.removeprefix("step-")) < STEPS
    finish(out, jsonl, 2, *RARELY)
    assert_bit_identical(out, undisturbed)


def test_without_the_option_torchrun_kills_such_a_save_after_30_seconds(tmp_path, jsonl, slow_disk):
    """The reason for the option; if torchrun waits longer one day, the README can be shorter."""
    out = tmp_path / "r"
    process = launched(out, jsonl, **slow_disk)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "forcefully exiting via" in errors
    assert checkpoint.all_checkpoints(out / "checkpoints") == [] and saving(out)
    assert status(out)["status"] == "running"


# -- SLURM ----------------------------------------------------------------------------------------

# As srun does on each node: starts the tasks and passes SIGUSR1 on; SIGTERM kills the step.
SRUN = """#!/bin/bash
setsid "$@" &
trap 'kill -USR1 $!' USR1
trap 'kill -KILL -- -$!; exit 143' TERM
wait $!; while kill -0 $! 2>/dev/null; do wait $!; done; wait $!
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
"show hostnames") echo localhost ;;
"requeue "*) echo "$2" >>"$REQUEUED" ;;
esac
"""
# As a login does: elsewhere, from nothing but what every shell has, without a terminal.
SSH = """#!/bin/bash
[ "$1 $2 $3" = "-n -o BatchMode=yes" ] || exit 255
echo "$4" >>"$LOGINS"
cd / && exec env -i HOME="$HOME" PATH="$PATH" PYTHONPATH="${PYTHONPATH:-}" bash -c "$5" </dev/null
"""


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a job on one node with two GPUs; copies of what users copy."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("ssh", SSH)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("launch.sh", "slurm.sbatch", "ssh.sh"):
        (tmp_path / name).write_text((CLUSTERS / name).read_text())
    path = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    job = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    job |= {"SLURM_JOB_NODELIST": "node0", "REQUEUED": str(tmp_path / "requeued")}
    job["LOGINS"] = str(tmp_path / "logins")
    return os.environ | job | {"PATH": os.pathsep.join(path)}


def write_config(path: Path, jsonl: Path, *more: str) -> None:
    """The options of killed_runs as the file that --config reads."""
    given = options(path.with_name("unused"), jsonl, 1, *more)
    path.write_text(to_toml(parse(given)))


def job(command: list, folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    with open(folder / "job.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def wait_for_steps(process: subprocess.Popen, out: Path, folder: Path, more: int) -> None:
    """Until so many lines of metrics have been written since now."""
    count = len(lines(out, "train")) if (out / "metrics.jsonl").exists() else 0
    while not (out / "metrics.jsonl").exists() or len(lines(out, "train")) < count + more:
        assert process.poll() is None, (folder / "job.log").read_text()[-3000:]
        time.sleep(0.02)


def test_a_slurm_job_that_meets_its_time_limit_three_times_is_requeued_until_it_is_done(
    tmp_path, jsonl, undisturbed, cluster
):
    """SLURM signals the batch shell alone (--signal=B:USR1@900), then queues the job again."""
    out, requeued = tmp_path / "runs" / "papers", tmp_path / "requeued"
    write_config(tmp_path / "run.toml", jsonl, *RARELY)
    script = ["bash", "slurm.sbatch", "run.toml", "runs/papers"]
    assert "--signal=B:USR1@" in (tmp_path / "slurm.sbatch").read_text()
    steps = []
    for limit in range(1, 4):
        process = job(script, tmp_path, cluster)
        wait_for_steps(process, out, tmp_path, 2)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=120) == 75
        assert requeued.read_text() == "17\n" * limit and status(out)["status"] == "stopped"
        steps.append(status(out)["step"])
    assert 0 < steps[0] < steps[1] < steps[2] < STEPS
    assert job(script, tmp_path, cluster).wait(timeout=600) == 0
    assert requeued.read_text() == "17\n" * 3 and status(out)["status"] == "done"
    assert_bit_identical(out, undisturbed)


def test_a_slurm_job_with_a_users_mistake_is_not_requeued(tmp_path, jsonl, cluster):
    write_config(tmp_path / "run.toml", jsonl)
    text = (tmp_path / "slurm.sbatch").read_text().replace("--max-restarts 3", "--max-restarts 0")
    (tmp_path / "slurm.sbatch").write_text(text)
    jsonl_gone = (tmp_path / "run.toml").read_text().replace(str(jsonl), "gone.jsonl")
    (tmp_path / "run.toml").write_text(jsonl_gone)
    script = ["bash", "slurm.sbatch", "run.toml", "runs/papers"]
    assert job(script, tmp_path, cluster).wait(timeout=120) == 1
    assert not (tmp_path / "requeued").exists()
    assert "gone.jsonl" in (tmp_path / "job.log").read_text()


# -- Kubernetes -----------------------------------------------------------------------------------


def kubernetes_command(shared: Path) -> list[str]:
    """The container's command of the file that users copy; one machine of two processes."""
    _, job = yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command = [word.replace("/shared", str(shared)) for word in container["command"]]
    for option, value in (("--nnodes", "1"), ("--nproc-per-node", "2")):
        command[command.index(option) + 1] = value
    command[command.index("--rdzv-endpoint") + 1] = "localhost:0"
    return command


def test_a_kubernetes_pod_that_is_evicted_is_started_again_and_a_finished_run_completes(
    tmp_path, jsonl, undisturbed, cluster
):
    """The kubelet sends SIGTERM to the first process of a container."""
    out, command = tmp_path / "runs" / "papers", kubernetes_command(tmp_path)
    write_config(tmp_path / "run.toml", jsonl, *RARELY)
    pod = job(command, tmp_path, cluster)
    wait_for_steps(pod, out, tmp_path, 2)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(timeout=120) == 75 and status(out)["status"] == "stopped"
    assert job(command, tmp_path, cluster).wait(timeout=600) == 0
    assert_bit_identical(out, undisturbed)
    assert job(command, tmp_path, cluster).wait(timeout=120) == 0  # a pod that comes late


# -- SSH ------------------------------------------------------------------------------------------


def ssh_command(folder: Path) -> list[str]:
    """Two machines of one process each, both of them this one, under two of its names."""
    text = (folder / "ssh.sh").read_text()
    for known, value in (("--nproc-per-node gpu", "--nproc-per-node 1"), ("29500", free_port())):
        assert text.count(known) == 1
        text = text.replace(known, str(value))
    (folder / "ssh.sh").write_text(text)
    return ["bash", "ssh.sh", "run.toml", "runs/papers", "localhost", "127.0.0.1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_machines_by_ssh_save_when_asked_to_and_go_on_until_they_are_done(
    tmp_path, jsonl, undisturbed, cluster, number
):
    out, command = tmp_path / "runs" / "papers", ssh_command(tmp_path)
    write_config(tmp_path / "run.toml", jsonl, *RARELY)
    process = job(command, tmp_path, cluster)
    wait_for_steps(process, out, tmp_path, 2)
    process.send_signal(number)
    assert process.wait(timeout=120) == 75, (tmp_path / "job.log").read_text()
    assert status(out)["status"] == "stopped" and 0 < status(out)["step"] < STEPS
    assert job(command, tmp_path, cluster).wait(timeout=600) == 0
    assert_bit_identical(out, undisturbed)
    assert {*(tmp_path / "logins").read_text().split()} == {"localhost", "127.0.0.1"}


def test_a_users_mistake_ends_ssh_with_neither_done_nor_stopped(tmp_path, jsonl, cluster):
    command = ssh_command(tmp_path)
    write_config(tmp_path / "run.toml", jsonl)
    text = (tmp_path / "ssh.sh").read_text().replace("--max-restarts 3", "--max-restarts 0")
    (tmp_path / "ssh.sh").write_text(text)
    gone = (tmp_path / "run.toml").read_text().replace(str(jsonl), "gone.jsonl")
    (tmp_path / "run.toml").write_text(gone)
    assert job(command, tmp_path, cluster).wait(timeout=120) == 1
    assert "gone.jsonl" in (tmp_path / "runs" / "papers.localhost.log").read_text()


# -- the table of exit codes in deepsynth_min/training/README.md -----------------------------------


def given_to(out: Path, jsonl: Path, *more) -> list[str]:
    return options(out, jsonl, 1, *RARELY, "--max-steps", 5000, *more)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("launcher", "signals", "code", "came_out"),
    [
        (PATIENT, [signal.SIGTERM], 1, "stopped"),
        (PATIENT, [signal.SIGUSR1], 1, "stopped"),
        (PATIENT, [signal.SIGINT], 1, "stopped"),
        ([], [signal.SIGTERM, signal.SIGTERM], 1, "stopped"),  # at once: the same wish
        ([], [signal.SIGUSR1], -signal.SIGUSR1, "running"),  # torchrun dies; its processes go on
    ],
)
def test_exit_codes_of_torchrun_for_signals(tmp_path, jsonl, launcher, signals, code, came_out):
    out = tmp_path / "r"
    process = start(*LAUNCHER, 2, *launcher, *TRAIN, *given_to(out, jsonl))
    begun(process, out)
    ranks = ranks_of(process)
    for number in signals:
        process.send_signal(number)
    try:
        process.wait(timeout=120)
        assert process.returncode == code and status(out)["status"] == came_out
    finally:
        for rank in ranks:
            if Path(f"/proc/{rank}").exists():
                os.kill(rank, signal.SIGKILL)
        process.communicate()


def test_exit_codes_of_torchrun_for_what_fails(tmp_path, jsonl):
    """A mistake is 2 of a process, and 1 of torchrun; so is a process that is killed."""
    mistake = start(*LAUNCHER, 2, *TRAIN, *given_to(tmp_path / "m", jsonl, "--mode", "511"))
    code, errors = ended(mistake)
    assert code == 1 and "exitcode  : 2" in errors
    process = launched(tmp_path / "k", jsonl)
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    code, errors = ended(process)
    assert code == 1 and "exitcode  : -9" in errors
