"""Damaged directories: runs, checkpoints, models, tokenizers and adapters are refused in one line,
or read as safetensors' own reader and the files' bytes say."""

import os
import random

import pytest
import torch
from fuzz import (
    ADAPTERS,
    CHECKPOINTS,
    RUNS,
    TOKENIZERS,
    WEIGHTS,
    fresh,
    mutate_bytes,
    mutate_file,
    mutate_json,
    outcome,
)
from safetensors.torch import load_file
from small_model import SMALL

from deepsynth_min.data.tokenizer import EMBEDDED, check_tokenizer, load_tokenizer, special_ids
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.weights import official_views
from deepsynth_min.runs.storage.run_directory import RunDirectory
from deepsynth_min.settings import Settings
from deepsynth_min.training import checkpoint
from deepsynth_min.training.optim import LossScaler, make_adamw, prepare_state
from deepsynth_min.tuning.adapter import load_adapter, read_config
from deepsynth_min.tuning.lora import Base, LoraConfig, adapter_views, attach
from deepsynth_min.tuning.targets import choose

BASE = Base("b", None, "d")


class Trainee:
    """A small model with an adapter and its optimizer, and what they hold as bytes."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = DeepseekOCR(SMALL)
        attach(self.model, LoraConfig(2, 4.0, base=BASE), choose(self.model, ("attention",)))
        self.optimizer = make_adamw(self.model, (0.9, 0.95), 0.0)
        self.scaler = LossScaler(False, torch.device("cpu"))
        prepare_state(self.optimizer)
        self.parts = self.model, self.optimizer, self.scaler

    def state(self) -> dict[str, torch.Tensor]:
        tensors = adapter_views(self.model) | checkpoint.optimizer_tensors(*self.parts)
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def disturb(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (
                *adapter_views(self.model).values(),
                *checkpoint.optimizer_tensors(*self.parts).values(),
            ):
                tensor.uniform_(0.5, 1.5, generator=generator)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture(scope="module")
def trainee():
    return Trainee()


@pytest.fixture(scope="module")
def run(tmp_path_factory, trainee):
    """(run directory with two checkpoints, {name: state})."""
    path, states = tmp_path_factory.mktemp("run") / "r", {}
    directory = RunDirectory(str(path), "none")
    directory.create(Settings())
    for step in (1, 2):
        trainee.disturb(step)
        facts = {
            "step": step,
            "best": 1.5,
            "best_metric": "loss",
            "stale": 0,
            "score": 2.0 - step,
            "unlogged": [[1.0, 2.0]],
        }
        checkpoint.save(
            path / "checkpoints",
            checkpoint.take_snapshot(*trainee.parts, facts),
            trainee.model,
            EMBEDDED,
        )
        states[f"step-{step:06}"] = trainee.state()
    (path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n'
    )
    directory.go_on_after(2)
    directory.release()
    return path, states


def resumed(path, trainee, steps) -> str | None:
    """Goes on in a run as the trainer does; returns the checkpoint it went on from, or ''."""
    directory = RunDirectory(str(path), "auto")
    try:
        found = directory.resume_from("auto")
        if found:
            trainee.disturb(99)
            steps.append(checkpoint.load(found, *trainee.parts, {})["step"])
        directory.go_on_after(steps[-1] if found else -1)
        return found.name if found else ""
    finally:
        directory.release()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_run_goes_on_from_exactly_what_was_saved_or_not_at_all(
    tmp_path, run, trainee, capsys
):
    chance, (source, states) = random.Random(4), run
    went_on = {name: 0 for name in (*states, "", None)}
    for _ in range(RUNS):
        path = fresh(source, tmp_path / "r")
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        newest = [file for file in files if file.parent.name == "step-000002"]
        among = newest if chance.random() < 0.7 else files
        done = [mutate_file(file, chance) for file in chance.sample(among, chance.choice((1, 2)))]
        steps = []
        name = outcome(lambda: resumed(path, trainee, steps))
        went_on[name] += 1
        if name:
            assert equal(trainee.state(), states[name]), done
            assert steps == [int(name[-6:])], done
    assert all(went_on[name] for name in (*states, None)), went_on
    assert "Traceback" not in capsys.readouterr().err


def test_a_forged_checkpoint_is_refused_or_read_as_its_files_say(tmp_path, run, trainee):
    """The manifest is made to fit, so that the readers behind it are on their own."""
    chance, (source, _), accepted = random.Random(5), run, 0
    for _ in range(CHECKPOINTS):
        path = fresh(source / "checkpoints" / "step-000002", tmp_path / "c")
        names = [name for name in sorted(os.listdir(path)) if name != "manifest.json"]
        done = mutate_file(path / chance.choice(names), chance)
        trainee.disturb(98)
        if outcome(lambda: checkpoint.load(path, *trainee.parts, {})) is not None:
            accepted += 1
            said = load_file(path / "adapter_model.safetensors")
            said |= load_file(path / "optimizer.safetensors")
            assert equal(
                {n: t.float() for n, t in trainee.state().items()},
                {n: t.float() for n, t in said.items()},
            ), done
    assert 0 < accepted < CHECKPOINTS


@pytest.mark.slow
def test_a_damaged_model_directory_is_refused_or_read_as_its_files_say(tmp_path):
    chance, source, accepted = random.Random(6), tmp_path / "m", 0
    source.mkdir()
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL)
    checkpoint.save_model(model, source, EMBEDDED)
    for _ in range(WEIGHTS):
        path = fresh(source, tmp_path / "c")
        file = path / chance.choice(("config.json", "model.safetensors"))
        if file.suffix == ".json" and chance.random() < 0.5:
            file.write_bytes(mutate_json(file.read_bytes(), chance))
        elif file.suffix != ".json" and chance.random() < 0.5:  # in its header
            data = file.read_bytes()
            file.write_bytes(mutate_bytes(data[:3000], chance) + data[3000:])
        else:
            mutate_file(file, chance)
        read = outcome(lambda: DeepseekOCR.from_pretrained(path))
        if read is not None:
            accepted += 1
            said = load_file(path / "model.safetensors")
            assert equal(
                {n: t.float() for n, t in official_views(read).items()},
                {n: t.float() for n, t in said.items()},
            )
    assert 0 < accepted < WEIGHTS


def test_a_damaged_tokenizer_is_refused_or_spells_every_text(tmp_path):
    chance, accepted, text = random.Random(7), 0, "Zwölf 日本 <image> 12\n"
    names = ["tokenizer.json"] * 2 + ["tokenizer_config.json", "special_tokens_map.json"]

    def read(path):
        tokenizer = load_tokenizer(path)
        special_ids(tokenizer)
        check_tokenizer(tokenizer, 4096)
        return tokenizer

    for _ in range(TOKENIZERS):
        path = fresh(EMBEDDED, tmp_path / "t")
        mutate_file(path / chance.choice(names), chance)
        tokenizer = outcome(lambda: read(path))
        if tokenizer is not None:
            accepted += 1
            assert max(tokenizer.backend_tokenizer.encode(text).ids) < 4096
    assert 0 < accepted < TOKENIZERS


def test_a_damaged_adapter_is_refused_and_leaves_the_model_or_is_read_as_its_files_say(
    tmp_path, run
):
    chance, accepted = random.Random(8), 0
    source, plain = run[0] / "checkpoints" / "step-000002", DeepseekOCR(SMALL)
    for _ in range(ADAPTERS):
        path = fresh(source, tmp_path / "a")
        mutate_file(
            path / chance.choice(("adapter_config.json", "adapter_model.safetensors")), chance
        )
        names = list(dict(plain.named_parameters()))
        if outcome(lambda: load_adapter(plain, path, BASE) or True):
            accepted += 1
            assert equal(dict(adapter_views(plain)), load_file(path / "adapter_model.safetensors"))
            assert plain.adapter.scale == read_config(path).scale
            plain = DeepseekOCR(SMALL)
        else:
            assert list(dict(plain.named_parameters())) == names and plain.adapter is None
    assert 0 < accepted < ADAPTERS
