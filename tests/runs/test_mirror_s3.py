"""--mirror against an object store: kills in the middle of an upload, a network that is cut,
credentials that are wrong, a store that is full."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TRAIN, words
from killed_runs import COMMON, assert_bit_identical
from object_store import BUCKET, client, names, running_store

from deepsynth_min.files.remote import Remote
from deepsynth_min.runs.storage.mirrored import bring, look
from deepsynth_min.training import checkpoint

pytestmark = pytest.mark.slow
KILLS, STEPS, FEW = 10, 20, ("--max-steps", "8")
KEY, SECRET = "AKIAEXAMPLEEXAMPLE", "aSecretThatNobodyMaySee"


@pytest.fixture(scope="module")
def store():
    with running_store() as store:
        yield store


@pytest.fixture(autouse=True)
def open_again(store):
    yield
    store.become("open")
    store.stall_at(0)


def launch(store, place: Path, jsonl: Path, *more, key: str = KEY, mirror: str = ""):
    """A run into place/run that says what it has to say in place/log."""
    url = mirror or f"s3://{BUCKET}/{place.name}"
    given = words("--batch-size 2 --data {} --out {}", jsonl, place / "run")
    given += [*COMMON, "--max-steps", str(STEPS), "--mirror", url, *map(str, more)]
    with open(place / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *TRAIN, *given],
            stdout=log,
            stderr=log,
            env=store.environment(key, SECRET),
        )


def finish(process: subprocess.Popen, place: Path, code: int = 0) -> str:
    """What the run has said; no credentials are in it, nor in its files."""
    assert process.wait(timeout=600) == code, (place / "log").read_text()[-3000:]
    said = (place / "log").read_text(errors="replace")
    files = [path.read_bytes() for path in (place / "run").rglob("*") if path.is_file()]
    for word in (KEY, SECRET):
        assert word not in said and not any(word.encode() in data for data in files)
    return said


def wait_until(condition, process: subprocess.Popen, place: Path) -> None:
    while not condition():
        assert process.poll() is None, (place / "log").read_text()[-3000:]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, store, jsonl) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    finish(launch(store, place, jsonl), place)
    return place / "run"


def whole_there(store, place: Path, folder: Path, monkeypatch) -> list[str]:
    """The checkpoints that would be taken; each is brought, and is as it was written."""
    for name, value in store.environment(KEY, SECRET).items():
        monkeypatch.setenv(name, value)
    remote = Remote("--mirror", f"s3://{BUCKET}/{place.name}")
    whole = look(remote, remote.sizes())
    for name, manifest in whole.items():
        assert bring(remote, name, manifest, folder)
    return list(whole)


def test_killed_ten_times_amid_an_upload_with_its_disk_lost_a_run_ends_bit_identical(
    store, tmp_path, jsonl, undisturbed, monkeypatch
):
    """Every life begins in an empty directory; what was under way is never taken for whole."""
    chance, resumed = random.Random(0), []
    for kill in range(KILLS):
        number = chance.randrange(1, 9)  # a checkpoint has six files
        store.stall_at(number)
        process = launch(store, tmp_path, jsonl)
        wait_until(store.stalled.is_set, process, tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(tmp_path / "run")
        under_way = set(names(store, f"{tmp_path.name}/checkpoints/"))
        whole = whole_there(store, tmp_path, tmp_path / f"taken-{kill}", monkeypatch)
        assert all(f"{name}/manifest.json" in under_way for name in whole)
        resumed.append(whole[-1] if whole else "")
    said = finish(launch(store, tmp_path, jsonl), tmp_path)
    assert_bit_identical(tmp_path / "run", undisturbed)
    begun = re.findall(r"resuming after step (\d+)", said)
    assert int(begun[-1]) == int(resumed[-1].removeprefix("step-")) > 0
    kept = {path.name for path in checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints")}
    there = {name.split("/")[0] for name in names(store, f"{tmp_path.name}/checkpoints/")}
    assert there == kept


def test_a_network_that_is_cut_and_back_again_costs_a_warning(store, tmp_path, jsonl):
    process = launch(store, tmp_path, jsonl)
    wait_until(lambda: names(store, f"{tmp_path.name}/checkpoints/"), process, tmp_path)
    store.become("cut")
    wait_until(lambda: "training goes on" in (tmp_path / "log").read_text(), process, tmp_path)
    store.become("open")
    finish(process, tmp_path)
    kept = {path.name for path in checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints")}
    there = names(store, f"{tmp_path.name}/checkpoints/")
    assert {name.split("/")[0] for name in there if name.endswith("manifest.json")} == kept


@pytest.mark.parametrize("mode", ["cut", "full"])
def test_a_store_that_stays_away_or_full_ends_no_run(store, tmp_path, jsonl, mode):
    process = launch(store, tmp_path, jsonl, *FEW)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process, tmp_path)
    store.become(mode)
    said = finish(process, tmp_path)
    assert f"{tmp_path / 'run'} holds what is missing there: --resume auto sends it" in said
    assert "no space is left" in said if mode == "full" else "connect" in said.lower()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "done"
    store.become("open")
    finish(launch(store, tmp_path, jsonl, *FEW), tmp_path)  # no step is left; the mirror is mended
    assert f"{(tmp_path / 'run' / 'last').read_text().strip()}/manifest.json" in names(
        store, f"{tmp_path.name}/checkpoints/"
    )


@pytest.mark.parametrize("mode", ["full", "cut", "mute"])
def test_a_store_that_is_full_or_away_at_the_start_ends_it_in_one_line(
    store, tmp_path, jsonl, mode
):
    store.become(mode)
    began = time.monotonic()
    (said,) = finish(launch(store, tmp_path, jsonl), tmp_path, code=2).splitlines()
    assert said.startswith(f"error: --mirror s3://{BUCKET}/{tmp_path.name}: ")
    assert mode != "full" or "no space is left" in said
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - began < 400  # two minutes, where the processor is not shared


def test_a_bucket_that_is_not_there_ends_the_start_in_one_line(store, tmp_path, jsonl):
    process = launch(store, tmp_path, jsonl, mirror="s3://no-such-bucket/run")
    said = finish(process, tmp_path, code=2)
    assert said.splitlines()[-1].startswith("error: --mirror s3://no-such-bucket/run: ")


def test_wrong_credentials_end_the_start_in_one_line_without_them(store, tmp_path, jsonl):
    client(store, "iam").create_user(UserName="someone")
    address = f"http://127.0.0.1:{store.port}/moto-api/reset-auth"
    import requests

    requests.post(address, data=b"0")  # from now on moto checks who asks
    try:
        said = finish(launch(store, tmp_path, jsonl), tmp_path, code=2)
    finally:
        requests.post(address, data=b"inf")
    last = said.splitlines()[-1]
    assert last.startswith("error: --mirror s3://") and "Access Key Id" in last, said
    assert not (tmp_path / "run").exists()


def test_no_credentials_at_all_end_the_start_in_one_line(store, tmp_path, jsonl):
    environment = store.environment(KEY, SECRET) | {"HOME": str(tmp_path)}
    environment = {k: v for k, v in environment.items() if "KEY" not in k}
    given = words("--data {} --out {} --mirror s3://runs/none", jsonl, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, *TRAIN, *given], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: --mirror s3://runs/none: ")
    assert len(done.stderr.splitlines()) == 1
