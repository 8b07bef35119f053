"""Data sets on the hub: downloaded by huggingface_hub itself from a server on loopback, and
pinned."""

import io
import json
import subprocess
import sys
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adapter_runs import QUICK
from commands import TRAIN, words
from hub_server import COMMIT, TOKEN, command, environment, running_hub
from PIL import Image

from deepsynth_min import command_line
from deepsynth_min.data.sources import find_source, pinned
from deepsynth_min.errors import UserError, one_line
from deepsynth_min.files.download import is_hub_id
from deepsynth_min.files.splits import choose_split
from deepsynth_min.settings import DataSettings

REPO = "someone/papers"
LATER = "beef" * 10


def table(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "summary": [f"of {text}" for text in texts]}), out)
    return out.getvalue()


def serve(server, files: dict[str, bytes], commit: str = COMMIT) -> None:
    server.repositories[REPO], server.private[REPO] = files, False
    server.commit = commit


SPLITS = {
    "README.md": b"# data",
    "code.py": b"raise SystemExit",
    "data/train-00000-of-00002.parquet": table(["a", "b", "c"]),
    "data/train-00001-of-00002.parquet": table(["d"]),
    "data/validation-00000-of-00001.parquet": table(["v", "w"]),
}

READ = """
import json, sys
from deepsynth_min.data.sources import open_rows, pinned
from deepsynth_min.errors import UserError
from deepsynth_min.command_line import parse

def read(options):
    settings = pinned(parse(options).data)
    yield settings.data_revision[0]
    for rows in open_rows(settings, 0):
        found = [rows[i] for i in range(len(rows))]
        yield " ".join(sorted(str(r.text or r.images[0].read_bytes()[1:4]) for r in found))

for line in sys.stdin:
    try:
        answer = list(read(json.loads(line)))
    except UserError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


@contextmanager
def reader(server, tmp_path):
    """A process that reads the data set whenever it is told to: read(*options) -> the commit and
    the rows of each split, or what the user is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ],
        env=environment(server, tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def read(*options):
        process.stdin.write(json.dumps(["--data", REPO, *options]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert TOKEN not in answer
        return json.loads(answer)

    try:
        yield read
    finally:
        process.kill()
        process.wait()


def test_the_files_of_the_splits_are_read_and_then_need_no_hub(tmp_path):
    with running_hub() as server:
        serve(server, SPLITS)
        with reader(server, tmp_path) as read:
            found = read("--val-data", REPO)
        assert found == [COMMIT, "a b c d", "v w"]
        assert not list((tmp_path / "home").rglob("code.py"))  # only what is read
        server.requests.clear()
        serve(server, {"train.parquet": table(["new 1", "new 2"])}, LATER)
        with reader(server, tmp_path) as read:  # a new process
            assert read("--val-data", REPO) == found and not server.requests
            # A revision by name that the cache has not seen, and the commit that it has.
            assert read("--data-revision", "v2")[0] == LATER
            commits = words("--data-revision {} --val-revision {}", COMMIT, COMMIT)
            assert read("--val-data", REPO, *commits) == found


@pytest.mark.slow
def test_a_download_that_was_interrupted_is_not_taken_for_a_smaller_data_set(tmp_path):
    with running_hub() as server, reader(server, tmp_path) as read:
        serve(server, SPLITS)
        read("--val-data", REPO)
        (lost,) = (tmp_path / "home").rglob("train-00001-of-00002.parquet")
        lost.unlink()
        server.requests.clear()
        assert read("--val-data", REPO) == [COMMIT, "a b c d", "v w"]
        assert "file" in server.requests
        (tmp_path / "cache" / "deepsynth_min").rename(tmp_path / "gone")  # as if by another program
        lost.unlink()
        server.fail = {"info": [503] * 99}
        assert read().startswith("someone/papers: not here, and the hub did not give it")


@pytest.mark.slow
def test_rows_may_name_image_files_of_the_data_set_and_no_others(tmp_path):
    png = io.BytesIO()
    Image.new("L", (4, 4)).save(png, "PNG")
    rows = [{"image": f"pages/{i}.png", "summary": "s"} for i in range(2)]
    content = "\n".join(map(json.dumps, rows)).encode()
    files = {"rows.jsonl": content, "pages/0.png": png.getvalue(), "pages/1.png": png.getvalue()}
    with running_hub() as server, reader(server, tmp_path) as read:
        serve(server, files)
        assert read()[1:] == ["b'PNG'", "b'PNG'"]
        serve(server, {"rows.jsonl": content.replace(b"pages/1.png", b"/etc/hostname")}, LATER)
        said = read("--data-revision", LATER)
        assert "rows.jsonl:1" in said and "pages/0.png: no such image" in said
        files["rows.jsonl"] = content.replace(b"pages/1.png", b"/etc/hostname")
        serve(server, files, "f00d" * 10)
        said = read("--data-revision", "f00d" * 10)
        assert "rows.jsonl:2: image '/etc/hostname' is outside of the data folder" in said


@pytest.mark.slow  # two runs in new processes: huggingface_hub reads its variables once
def test_a_run_notes_the_commit_keeps_to_it_and_writes_no_token(tmp_path):
    out = tmp_path / "run"
    given = [*TRAIN, *QUICK, "--data", REPO, "--out", out]
    with running_hub() as server, reader(server, tmp_path) as read:
        serve(server, {"rows.parquet": table([f"text {i}" for i in range(8)])})
        done = command(server, tmp_path, *given, "--max-steps", 1)
        assert done.returncode == 0, done.stderr
        assert command_line.load(out / "config.toml").data.data_revision == (COMMIT,)
        # The branch has moved on, and the cache with it; the run goes on with its own rows.
        serve(server, {"rows.parquet": table([f"new {i}" for i in range(9)])}, LATER)
        read("--data-revision", LATER)
        for ref in (tmp_path / "home").rglob("refs/main"):
            ref.write_text(LATER)
        assert read()[0] == LATER
        done = command(server, tmp_path, *given, "--max-steps", 2, "--resume", "auto")
        assert done.returncode == 0, done.stderr
        assert "resuming after step 1" in done.stdout
        assert command_line.load(out / "config.toml").data.data_revision == (COMMIT,)
        assert server.tokens == {f"Bearer {TOKEN}"}
    for path in [*out.rglob("*"), *(tmp_path / "cache").rglob("*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


STATUSES = (401, 403, 404, 500)
TRY_ALL = """
import sys
from deepsynth_min.train import main
for repo in sys.argv[2:]:
    for option in ("--data", "--model"):
        print(main([option, repo, "--out", sys.argv[1]]))
"""


def test_an_error_of_the_hub_is_one_line_without_token_or_password(tmp_path, monkeypatch):
    with running_hub() as server:
        address = server.url.replace("//", f"//user:{TOKEN}@")
        monkeypatch.setattr(type(server), "url", property(lambda self: address))
        repos = [f"someone/fails-{status}" for status in STATUSES]
        done = command(server, tmp_path, "-c", TRY_ALL, tmp_path / "run", *repos)
    assert done.stdout.split() == ["2"] * 2 * len(repos), done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 2 * len(repos)
    for line, repo in zip(said, [repo for repo in repos for _ in range(2)]):
        assert line.startswith(f"error: {repo}: not here, and the hub did not give it")
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_an_address_loses_its_password_in_any_message():
    text = "cannot open https://me:secret@example.com/a and http://b.example/c@d or a@b"
    shown = one_line(UserError(text))
    assert shown == text.replace("me:secret", "***")


def test_what_is_no_split_is_named(tmp_path):
    def files_of_split(split: str) -> list[str]:
        source = find_source(str(tmp_path), DataSettings())
        return [file.name for file in choose_split(source.splits, split, "a/b")]

    for name in ("test-0.jsonl", "constrained.jsonl"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="a/b: no files of the split 'train'.*only test"):
        files_of_split("train")
    assert files_of_split("val") == ["test-0.jsonl"]
    (tmp_path / "test-0.jsonl").unlink()
    assert files_of_split("train") == ["constrained.jsonl"]
    (tmp_path / "constrained.jsonl").unlink()
    with pytest.raises(UserError, match="no file of rows in this folder"):
        files_of_split("train")


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    names = "data/rows.jsonl data/a.parquet a ./a a/b/c ~/a /a a/ ../a".split()
    assert not any(map(is_hub_id, [*names, "a b/c"]))
    with pytest.raises(UserError, match="--data-revision main: 'x.jsonl' is not a data set"):
        pinned(command_line.parse(["--data", "x.jsonl", "--data-revision", "main"]).data)
