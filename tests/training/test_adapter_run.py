"""Runs that train adapters: their checkpoints, resuming, starting from an adapter, and mistakes."""

import json
import re
import shutil

import pytest
import torch
from adapter_runs import QUICK, run, write_base, write_rows
from commands import words
from official_tree import official_tree
from run_files import losses
from safetensors.torch import load_file
from small_model import SMALL

from deepsynth_min import evaluate, train
from deepsynth_min.options import change
from deepsynth_min.runs.recorded import FILE
from deepsynth_min.settings import Settings
from deepsynth_min.training.build import resolve
from deepsynth_min.training.distributed import World
from deepsynth_min.tuning.adapter import CONFIG, OTHERS, TENSORS

KINDS = [
    ("lora", ["--lora-plus-ratio", 4]),
    ("projector+qlora", ["--quant", "nf4"]),
    ("qlora", ["--quant", "int8", "--precision", "bf16"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    for tune, options in KINDS:
        run(folder, "--tune", tune, *options, "--max-steps", 12, "--save-every", 6, out=tune)
    return folder


@pytest.mark.parametrize("tune, _", KINDS)
def test_the_loss_falls_and_the_checkpoint_holds_no_base(folder, tune, _):
    found = losses(folder / tune)
    assert found[-1] < found[0]
    checkpoint = folder / tune / "checkpoints" / "step-000012"
    names = {CONFIG, TENSORS, FILE, "optimizer.safetensors", "training.json", "manifest.json"}
    assert {path.name for path in checkpoint.iterdir()} == (
        names | {OTHERS} if "projector" in tune else names
    )
    config = json.loads((checkpoint / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(folder / "base")


@pytest.mark.parametrize("tune, _", KINDS)
def test_evaluating_a_checkpoint_gives_the_logged_loss(folder, tune, _):
    result = evaluate.run(["--run", str(folder / tune)])
    assert abs(result["loss"] - losses(folder / tune)[-1]) < 1e-6


@pytest.mark.parametrize("tune, _", KINDS)
def test_a_resumed_run_ends_with_the_same_bytes(folder, tmp_path, tune, _):
    stopped = tmp_path / "stopped"
    shutil.copytree(folder / tune, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-000012")
    given = words("--config {} --out {} --resume auto", stopped / "config.toml", stopped)
    assert train.main(given) == 0
    for name in (TENSORS, OTHERS, "optimizer.safetensors"):
        whole, again = (f / "checkpoints" / "step-000012" / name for f in (folder / tune, stopped))
        assert whole.exists() == again.exists()
        if whole.exists():
            a, b = load_file(whole), load_file(again)
            assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a), name


def test_a_run_over_a_preset_keeps_the_random_weights_it_stands_on(folder, tmp_path):
    shutil.copyfile(folder / "rows.jsonl", tmp_path / "rows.jsonl")
    out = run(tmp_path, "--model", "tiny", "--tune", "qlora", "--max-steps", 1)
    assert {path.name for path in (out / "base").iterdir()} >= {"config.json", "tokenizer.json"}
    result = evaluate.run(["--run", str(out)])
    assert abs(result["loss"] - losses(out)[-1]) < 1e-6


def test_training_goes_on_from_an_adapter_with_its_rank_and_scale(folder, tmp_path):
    shutil.copyfile(folder / "rows.jsonl", tmp_path / "rows.jsonl")
    first = folder / "lora"
    adapter = first / "checkpoints" / "step-000012"
    options = words("--model {} --tune lora --max-steps 1 --adapter {}", folder / "base", adapter)
    out = run(tmp_path, *options)
    assert abs(losses(out)[0] - losses(first)[-1]) < 1e-6
    assert losses(out)[0] != losses(first)[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_trained_beside_an_adapter_stays_with_it(folder, tmp_path, precision):
    """A projector, of a run that goes on with the adapter alone."""
    rows = shutil.copyfile(folder / "rows.jsonl", tmp_path / "rows.jsonl")
    first = folder / "projector+qlora" / "checkpoints" / "step-000012"
    given = words("--model {} --tune qlora --adapter {}", folder / "base", first)
    given += words("--precision {} --max-steps 4 --save-every 2", precision)
    out = run(tmp_path, *given)
    if precision == "fp32":
        assert abs(losses(out)[0] - losses(folder / "projector+qlora")[-1]) < 1e-6
    step = out / "checkpoints" / "step-000004"
    before, after = load_file(first / OTHERS), load_file(step / OTHERS)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert before.keys() == after.keys() and len(after) == 4
    assert all(torch.equal(after[name], before[name].to(dtype)) for name in after)
    result = evaluate.run(["--run", str(out)])
    assert abs(result["loss"] - losses(out)[-1]) < 1e-6
    read = words("--data {} --batch-size 2 --answer-samples 0 --ablation-samples 0", rows)
    model = words("--model {} --adapter {}", folder / "base", step)
    whole = evaluate.run(["--run", str(out), *read])
    assert evaluate.run([*model, *read])["loss"] == whole["loss"]
    stopped = shutil.copytree(out, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "step-000004")
    assert train.main(["--out", str(stopped), "--resume", "auto"]) == 0
    for name in (TENSORS, OTHERS, "optimizer.safetensors"):
        a, b = load_file(step / name), load_file(stopped / "checkpoints" / "step-000004" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a), name


def test_whole_modules_of_pefts_adapter_are_trained_with_and_read(folder, tmp_path):
    """modules_to_save: the head and the projector, of bf16, as others write them."""
    peft = pytest.importorskip("peft")
    shutil.copyfile(folder / "rows.jsonl", tmp_path / "rows.jsonl")
    torch.manual_seed(0)
    options = dict(target_modules=["q_proj"], modules_to_save=["lm_head", "projector"])
    tree = official_tree(load_file(folder / "base" / "model.safetensors"))
    made = peft.get_peft_model(tree, peft.LoraConfig(r=2, init_lora_weights=False, **options))
    for name, parameter in made.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.5)
    made.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    base, adapter = folder / "base", tmp_path / "peft"
    out = run(tmp_path, *words("--model {} --tune lora --max-steps 2 --adapter {}", base, adapter))
    theirs = words("--model {} --adapter {} --answer-samples 0 --ablation-samples 0", base, adapter)
    theirs += ["--data", str(folder / "rows.jsonl")]
    assert evaluate.run(theirs)["loss"] > 0  # as stored: all in bf16
    held = load_file(out / "checkpoints" / "step-000002" / OTHERS)
    assert held.keys() == {"lm_head.weight", *(f"model.projector.layers.{n}" for n in PARTS)}
    first = load_file(base / "model.safetensors")["lm_head.weight"]
    assert torch.equal(held["lm_head.weight"], (1.5 * first).float())
    result = evaluate.run(["--run", str(out)])
    assert abs(result["loss"] - losses(out)[-1]) < 1e-6


PARTS = ("weight", "bias")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tune", "decoder"], "--tune decoder trains no adapter"),
        (["--tune", "lora", "--lora-rank", "8"], "--lora-rank 8: the adapter .* has 16"),
        (["--tune", "lora", "--lora-alpha", "8"], "--lora-alpha 8.0: the adapter .* has 32.0"),
        (["--tune", "lora", "--rslora"], "--rslora True: the adapter .* has False"),
        (["--tune", "lora", "--lora-targets", "all"], "decides what it adapts"),
        (["--tune", "lora", "--model", "tiny"], "tiny has random weights"),
        (["--tune", "lora", "--weights", "bf16"], "--weights bf16: cannot compute in fp32"),
    ],
)
def test_settings_that_contradict_an_adapter_are_one_line(
    folder, tmp_path, capsys, options, message
):
    adapter = folder / "lora" / "checkpoints" / "step-000012"
    given = words(
        "--model {} --data {} --out {} --adapter {}",
        *(folder / "base", folder / "rows.jsonl", tmp_path / "r", adapter),
    )
    assert train.main([*given, *QUICK, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_an_adapter_of_another_base_is_refused(folder, tmp_path, capsys):
    other = write_base(tmp_path / "other", SMALL, seed=5)
    adapter = folder / "lora" / "checkpoints" / "step-000012"
    given = words(
        "--model {} --data {} --out {} --tune lora --adapter {}",
        *(other, folder / "rows.jsonl", tmp_path / "r", adapter),
    )
    assert train.main([*given, *QUICK]) == 2
    assert "trained over another base model" in capsys.readouterr().err


def test_automatic_values_of_adapters_are_as_documented():
    settings = change(Settings(), model="some/model", tune="lora")
    resolved = resolve(settings, 100, World(0, 1, torch.device("cpu")))
    assert (resolved.adapter.lora_rank, resolved.adapter.lora_alpha) == (16, 32.0)
    assert resolved.adapter.lora_targets == ("attention+mlp",) and resolved.optim.lr == 1e-4
