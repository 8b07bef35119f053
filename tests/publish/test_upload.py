"""Uploads and downloads, by huggingface_hub itself, against an HTTP server on loopback."""

import subprocess

import pytest
from adapter_runs import run, write_base, write_rows
from commands import TRAIN, words
from hub_server import COMMIT, TOKEN, command, running_hub
from safetensors.torch import load_file
from small_model import SMALL

from deepsynth_min import command_line, hub
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model.weights import tensor_digest
from deepsynth_min.options import change
from deepsynth_min.publish import model_card
from deepsynth_min.runs.recorded import FILE
from deepsynth_min.tuning.adapter import CONFIG, TENSORS

REPO = "someone/reader"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, rows.jsonl and run/, a LoRA run over them."""
    folder = tmp_path_factory.mktemp("hub")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    run(folder, "--tune", "lora", "--max-steps", 1)
    return folder


def export(server, folder, tmp_path, *options) -> subprocess.CompletedProcess:
    given = words("--run {} --to {} --push-to-hub {}", folder / "run", tmp_path / "e", REPO)
    return command(server, tmp_path, "-m", "deepsynth_min.export", *given, *options)


FETCH = """
import sys
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.model.weights import tensor_digest
from deepsynth_min.model.shape.presets import find_checkpoint
for revision in sys.argv[2:]:
    print(find_checkpoint(sys.argv[1], revision).name, flush=True)
model = DeepseekOCR.from_pretrained(sys.argv[1])
print(tensor_digest(model.lm_head.weight).hex())
"""


@pytest.mark.slow
def test_a_merged_model_is_pushed_and_read_by_its_hub_id_from_the_cache_first(folder, tmp_path):
    with running_hub() as server:
        done = export(server, folder, tmp_path, "--merge", "--private")
        assert done.returncode == 0, done.stderr
        files = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
        assert server.repositories == {REPO: files} and server.private[REPO]
        assert server.tokens == {f"Bearer {TOKEN}"}
        assert all(TOKEN.encode() not in data for data in files.values())
        server.requests.clear()
        done = command(server, tmp_path, "-c", FETCH, REPO)
        assert done.returncode == 0, done.stderr
        (shard,) = (tmp_path / "e").glob("*.safetensors")
        assert done.stdout.split() == [tensor_digest(load_file(shard)["lm_head.weight"]).hex()]
        assert {"info", "file"} <= set(server.requests)
        server.requests.clear()
        again = command(server, tmp_path, "-c", FETCH, REPO, "v2").stdout.split()
        assert again == [COMMIT, *done.stdout.split()]
        # Another revision is another thing, so the hub was asked; the branch lies in the cache.
        assert "info:v2" in server.requests and "info:main" not in server.requests
        assert "info:None" not in server.requests
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in stored)


def test_an_adapter_is_pushed_at_the_end_of_training_with_its_card(folder, tmp_path):
    with running_hub() as server:
        more = words(
            "--model {} --data {} --out {} --tune lora --max-steps 1 --val-samples 2 "
            "--max-new-tokens 4 --push-to-hub {}",
            *(folder / "base", folder / "rows.jsonl", tmp_path / "run", REPO),
        )
        done = command(server, tmp_path, *TRAIN, *more)
        assert done.returncode == 0, done.stderr
        files = server.repositories[REPO]
    assert files.keys() == {CONFIG, TENSORS, FILE, "README.md"} and not server.private[REPO]
    newest = tmp_path / "run" / "checkpoints" / "step-000001"
    assert files[TENSORS] == (newest / TENSORS).read_bytes()
    card = files["README.md"].decode()
    assert "PeftModel.from_pretrained" in card and "| held-out loss |" in card
    assert str(tmp_path) not in card and str(folder) not in card  # no path of the machine


@pytest.mark.slow
def test_an_upload_that_fails_midway_loses_nothing_and_says_how_to_go_on(folder, tmp_path):
    with running_hub() as server:
        server.fail = {"upload": [403] * 9}
        done = export(server, folder, tmp_path)
        assert done.returncode == 2
        assert server.repositories[REPO] == {}  # no half of a commit
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith(f"error: upload to {REPO} failed") and "nothing is lost" in line
        assert load_file(tmp_path / "e" / TENSORS)
        again = line.partition("python -m deepsynth_min.hub ")[2].split()
        server.fail = {"create": [500]}  # passes: tried again without being asked
        done = command(server, tmp_path, "-m", "deepsynth_min.hub", *again)
        assert done.returncode == 0, done.stderr
        assert server.repositories[REPO].keys() == {CONFIG, TENSORS, FILE, "README.md"}
    assert f"uploaded to {server.url}/{REPO}" in done.stdout


def test_a_directory_without_weights_is_not_uploaded(tmp_path, capsys):
    assert hub.main(["--directory", str(tmp_path), "--repo", REPO]) == 2
    assert "no model or adapter in it" in capsys.readouterr().err


def test_the_card_names_a_base_on_the_hub_and_its_revision(folder):
    run_directory = folder / "run"
    settings = command_line.load(run_directory / "config.toml")
    settings = change(settings, model="deepseek-ai/DeepSeek-OCR", revision=COMMIT)
    checkpoint = run_directory / "checkpoints" / "step-000001"
    builder = SampleBuilder(settings, SMALL, load_tokenizer())
    card = model_card.model_card(builder, run_directory, checkpoint, adapter=True)
    assert "\nbase_model: deepseek-ai/DeepSeek-OCR\n" in card
    assert f"| base model | deepseek-ai/DeepSeek-OCR at {COMMIT} |" in card
