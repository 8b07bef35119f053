"""--mirror: what is there is whole or not taken, whoever was killed, and a run goes on without."""

import json
import os
import shutil
from pathlib import Path

import pytest
from adapter_runs import QUICK, write_base, write_rows
from commands import words
from run_files import assert_same_run, lines
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.errors import UserError
from deepsynth_min.files.remote import Remote, RemoteError, without_secrets
from deepsynth_min.runs.storage.mirrored import listed, look, step_of
from deepsynth_min.settings import RunSettings
from deepsynth_min.training import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """base/, rows.jsonl; run/, a run of 4 steps, and mirror/, its mirror."""
    folder = tmp_path_factory.mktemp("mirror")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    assert train.main(line(folder, folder)) == 0
    return folder


def line(folder: Path, place: Path, *more) -> list[str]:
    """A run into place/run, mirrored to place/mirror."""
    given = words(
        "--model {} --data {} --out {} --mirror {} --tune lora --max-steps 4 --save-every 1 "
        "--keep 2 --eval-every 2 --log-every 1",
        *(folder / "base", folder / "rows.jsonl", place / "run", f"file://{place}/mirror"),
    )
    return [*QUICK, *given, *map(str, more)]


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The run and its mirror, to be harmed."""
    for name in ("run", "mirror"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path


def go_on(folder: Path, place: Path, *more) -> int:
    """As a stranger would: nothing but where the run and its mirror are."""
    where = words("--out {} --mirror {} --resume auto", place / "run", f"file://{place}/mirror")
    return train.main([*where, *map(str, more)])


def content(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_a_mirror_holds_the_run_byte_for_byte_and_what_the_run_removed_is_removed(folder):
    ours, theirs = content(folder / "run"), content(folder / "mirror")
    assert ours == theirs and json.loads(ours["status.json"])["status"] == "done"
    kept = {path.name for path in (folder / "mirror" / "checkpoints").iterdir()}
    assert {"step-000003", "step-000004"} <= kept and "step-000001" not in kept


def test_a_run_goes_on_from_its_mirror_alone(folder, copy):
    """Six steps, of which the last two are made where nothing but the mirror is left."""
    shutil.rmtree(copy / "run")
    assert go_on(folder, copy, "--max-steps", 6) == 0
    assert [entry["step"] for entry in lines(copy / "run", "train")] == [1, 2, 3, 4, 5, 6]
    assert content(copy / "run") == content(copy / "mirror")


def test_the_best_checkpoint_comes_too(folder, copy):
    (copy / "mirror" / "best").write_text("step-000003\n")
    shutil.rmtree(copy / "run")
    assert go_on(folder, copy) == 0
    found = checkpoint.all_checkpoints(copy / "run" / "checkpoints")
    assert [path.name for path in found] == ["step-000003", "step-000004"]


def test_what_is_newer_here_is_gone_on_from(folder, copy, capsys):
    shutil.rmtree(copy / "mirror" / "checkpoints" / "step-000004")
    assert go_on(folder, copy) == 0
    assert "resuming after step 4" in capsys.readouterr().out
    assert content(copy / "run") == content(copy / "mirror")


def test_what_is_newer_there_is_gone_on_from(folder, copy, capsys):
    shutil.rmtree(copy / "run" / "checkpoints" / "step-000004")
    assert go_on(folder, copy) == 0
    assert "resuming after step 4" in capsys.readouterr().out


def test_a_checkpoint_damaged_here_comes_whole_from_there(folder, copy, capsys):
    newest = copy / "run" / "checkpoints" / "step-000004"
    os.truncate(newest / "optimizer.safetensors", 99)
    assert go_on(folder, copy) == 0
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and "resuming after step 4" in printed
    assert checkpoint.damage(newest) is None


def test_a_checkpoint_whose_digest_is_wrong_there_is_not_taken(folder, copy, capsys):
    shutil.rmtree(copy / "run")
    file = copy / "mirror" / "checkpoints" / "step-000004" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert go_on(folder, copy) == 0
    printed, errors = capsys.readouterr()
    assert "step-000004 is damaged there (optimizer.safetensors is not as it" in errors
    assert "resuming after step 3" in printed
    assert_same_run(copy / "run", folder / "run", "adapter_model.safetensors")


@pytest.mark.parametrize("harm", ["no manifest", "a file is missing", "a file is short"])
def test_what_is_not_whole_there_is_not_listed(copy, harm):
    newest = copy / "mirror" / "checkpoints" / "step-000004"
    if harm == "a file is short":
        os.truncate(newest / "training.json", 9)
    else:
        (newest / ("manifest.json" if harm == "no manifest" else "training.json")).unlink()
    remote = Remote("--mirror", f"file://{copy}/mirror")
    assert list(look(remote, remote.sizes())) == ["step-000003"]


def test_a_mirror_of_another_run_is_refused_and_left_as_it_is(folder, copy, capsys):
    (copy / "run" / "run.id").write_text("another")
    before = content(copy / "mirror")
    assert go_on(folder, copy, "--max-steps", 6) == 2
    assert "holds another run than --out" in capsys.readouterr().err
    assert content(copy / "mirror") == before


def test_a_new_run_does_not_overwrite_a_mirror(folder, copy, capsys):
    shutil.rmtree(copy / "run")
    assert train.main(line(folder, copy)) == 2
    assert "already holds a run" in capsys.readouterr().err and not (copy / "run").exists()


def test_a_mirror_that_cannot_be_written_to_ends_a_run_before_it_begins(folder, tmp_path, capsys):
    (tmp_path / "mirror").write_text("a file")
    assert train.main(line(folder, tmp_path)) == 2
    assert capsys.readouterr().err.startswith("error: --mirror file://")
    assert not (tmp_path / "run").exists()


def test_a_mirror_that_goes_away_costs_a_warning_and_comes_back_with_the_next_run(
    folder, copy, capsys
):
    shutil.rmtree(copy / "mirror")
    (copy / "mirror").write_text("not a folder any more")
    assert go_on(folder, copy, "--max-steps", 6) == 0
    errors = capsys.readouterr().err
    assert "the run goes on from what is here" in errors
    assert "holds what is missing there: --resume auto sends it" in errors.splitlines()[-1]
    (copy / "mirror").unlink()
    assert go_on(folder, copy) == 0
    assert content(copy / "run") == content(copy / "mirror")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:secret@bucket/run",
        "s3://bucket/run?X-Amz-Signature=secret",
        "https://secret.example/run",
        "file:///secret/../@x",
        "s3://",
    ],
)
def test_a_url_that_may_carry_credentials_is_refused_and_not_shown(url):
    with pytest.raises(UserError, match="--mirror: ") as refused:
        RunSettings(mirror=url)
    assert "secret" not in str(refused.value)


def test_credentials_are_taken_out_of_messages(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    text = "https://u:pw@h/x https://h/y?X-Amz-Signature=ab Bearer ey.1 AKIAIOSFODNN7EXAMPLE "
    cleaned = without_secrets(text + "wJalrXUtnFEMI")
    assert not [s for s in ("pw", "Amz", "ey.1", "AKIA", "wJalr") if s in cleaned], cleaned


def test_names_from_a_mirror_lead_nowhere_else():
    assert listed(b'{"../x": {"bytes": 1}}') == {} == listed(b"[1]") == listed(b"{")
    assert step_of("step-000012") == 12
    assert step_of("step-../../x") == step_of("step-12") == step_of("other") == -1


def test_an_error_of_the_store_is_one_line_that_names_the_option(tmp_path):
    with pytest.raises(RemoteError, match="^--mirror file:///.*No such file") as error:
        Remote("--mirror", f"file://{tmp_path}/none").read("x")
    assert "\n" not in str(error.value)
