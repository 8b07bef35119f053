"""The feature cache: runs with it equal runs without it, whatever is wrong with its files."""

import pytest
import torch
from adapter_runs import write_base
from commands import words
from run_files import lines
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.command_line import parse
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.training import feature_cache as features
from deepsynth_min.training.feature_cache import FeatureCache, keyed

CPU = torch.device("cpu")
NAMES = ("step", "loss", "grad_norm", "lr")


def test_a_run_with_the_cache_has_the_losses_of_one_without_to_the_bit(tmp_path, jsonl):
    base = write_base(tmp_path / "base", SMALL)

    def run(name: str, *more) -> list[list]:
        common = words(
            "--model {} --data {} --batch-size 6 --max-steps 6 --val-samples 2 --log-every 1 "
            "--answer-samples 0 --eval-every 0 --save-every 3 --ablation-samples 0 --out {} "
            "--tune projector+decoder",
            *(base, jsonl, tmp_path / name),
        )
        assert train.main([*common, *map(str, more)]) == 0
        return [[line.get(name) for name in NAMES] for line in lines(tmp_path / name)]

    plain, more = run("plain"), ["--feature-cache", tmp_path / "cache"]
    assert run("memory", "--feature-cache", "memory") == plain
    assert run("disk", *more) == plain
    (tmp_path / "disk" / "checkpoints" / "step-000006" / "manifest.json").unlink()
    assert run("disk", *more, "--resume", "auto") == plain


def cache(model, folder, **limits) -> tuple[FeatureCache, list[str]]:
    options = [part for name, value in limits.items() for part in (f"--cache-{name}", str(value))]
    told: list[str] = []
    settings = parse(["--feature-cache", str(folder), *options])
    return FeatureCache(settings, model, CPU, 1, told.append), told


@pytest.fixture
def model(small_config) -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(small_config).requires_grad_(False)


def batch(pages: int = 3) -> Batch:
    torch.manual_seed(3)
    mask = torch.zeros(pages, 12, dtype=torch.bool)
    mask[:, 1:8] = True
    drawn = torch.randint(0, 256, (pages, 1, 128, 128), dtype=torch.uint8)
    return keyed(
        Batch(
            torch.full(mask.shape, 5),
            torch.ones_like(mask),
            mask,
            torch.full(mask.shape, -100),
            drawn,
        )
    )


def test_what_one_process_wrote_another_finds_and_it_is_what_the_encoder_gives(model, tmp_path):
    first, _ = cache(model, tmp_path)
    fresh = first.fill(batch()).features
    first.close()
    second, told = cache(model, tmp_path)
    found = second.fill(batch()).features
    assert (second.hits, second.misses, told) == (3, 0, [])
    assert found.equal(fresh) and found.equal(model.page_features(batch().pages))


def test_damaged_and_foreign_entries_are_reported_and_computed_again(model, tmp_path):
    first, _ = cache(model, tmp_path)
    fresh = first.fill(batch()).features
    first.close()
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    (file.parent / "foreign.safetensors").write_bytes(b"not one of ours")
    second, told = cache(model, tmp_path)
    assert second.fill(batch()).features.equal(fresh)
    assert second.misses == 1 and len(told) == 2
    assert "foreign" in told[0] and "damaged" in told[1]


def test_another_encoder_or_precision_finds_nothing(model, tmp_path):
    first, _ = cache(model, tmp_path)
    first.fill(batch())
    first.close()
    with torch.no_grad():
        model.model.vision_model.pre_layrnorm.bias[0] += 1
    second, _ = cache(model, tmp_path)
    second.fill(batch())
    assert second.misses == 3
    prints = {features.encoder_fingerprint(model, CPU, p) for p in ("fp32", "bf16")}
    assert len(prints) == 2


def test_the_outputs_of_learned_queries_are_cached_for_pages_and_tiles(tmp_path):
    torch.manual_seed(0)
    model = DeepseekOCR(PRESETS["tiny-2"]).requires_grad_(False)
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, 1 : 1 + 2 * 9 + 16 + 1] = True
    text = torch.full(mask.shape, 5), torch.ones_like(mask), mask, torch.full(mask.shape, -100)
    page, tiles = (torch.randint(0, 256, (n, 1, s, s)).byte() for n, s in ((1, 256), (2, 192)))
    drawn = keyed(Batch(*text, page, tiles, torch.tensor([[2, 1]]), newlines=False))
    first, _ = cache(model, tmp_path)
    fresh = first.fill(drawn)
    first.close()
    second, told = cache(model, tmp_path)
    found = second.fill(drawn)
    assert (second.hits, second.misses, told) == (3, 0, [])
    assert found.features.shape == (1, 4, 4, 128) and found.tile_features.shape == (2, 3, 3, 128)
    assert model(found).equal(model(fresh)) and model(found).equal(model(drawn))
    with torch.no_grad():
        model.model.qwen2_model.query_192.weight[0] += 1
    third, _ = cache(model, tmp_path)
    third.fill(drawn)
    assert third.misses == 3


def test_the_bounds_on_memory_and_disk_hold_and_change_no_result(model, tmp_path):
    entry = model.page_features(batch().pages)[0].nbytes
    small, told = cache(model, tmp_path, memory=1.5 * entry / 2**30, disk=2 * entry / 2**30)
    for _ in range(2):
        assert small.fill(batch()).features.equal(model.page_features(batch().pages))
    small.close()
    assert len(small.held) == 1 and not list(tmp_path.rglob("*.safetensors"))
    assert "no space left" in told[0]


@pytest.mark.parametrize("wrong", [["--augment"], ["--tune", "all"], ["--tune", "all-but-sam"]])
def test_a_cache_that_could_not_be_right_is_the_users_mistake(tmp_path, capsys, wrong):
    out = str(tmp_path / "r")
    assert train.main(["--feature-cache", "memory", *wrong, "--out", out]) == 2
    assert capsys.readouterr().err.startswith("error: --feature-cache: not with")
