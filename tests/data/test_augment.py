"""Augmentation: the one warp against slow references and Pillow; what a page gets, and when."""

import json
import math

import numpy as np
import pytest
import torch
from commands import words
from PIL import Image

from deepsynth_min import train
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.augment import (
    IDENTITY,
    Changes,
    augment,
    augment_batch,
    blurred,
    draw,
    matrices,
    warp,
)
from deepsynth_min.model.batch import Batch
from deepsynth_min.pages.renderer import PageStyle, render_pages
from deepsynth_min.settings import AugmentSettings

GEOMETRY = {
    "angle": 3.0,
    "tilt_x": 0.03,
    "tilt_y": -0.02,
    "scale": 0.9,
    "shift_x": 0.02,
    "shift_y": -0.03,
    "mirror": -1.0,
}


@pytest.fixture(scope="module")
def page() -> torch.Tensor:
    """A rendered page, [1, 1, 192, 192]."""
    style = PageStyle(width=192, height=192, font_size=12, margin=12)
    return torch.from_numpy(render_pages(corpus.documents("val")[0].text, style).pages[:1, None])


def changed(**values) -> Changes:
    changes = Changes.none(1)
    for name, value in values.items():
        changes.values[name][:] = value
    return changes


def test_identity_parameters_give_the_identical_page(page):
    assert augment(page, Changes.none(1)).equal(page)
    assert warp(page.float(), torch.eye(3).double()[None], 255.0).round().byte().equal(page)


def slow_warp(page: np.ndarray, values: dict) -> np.ndarray:
    """Pixel by pixel: forward matrix built from its parts, inverted, four neighbours weighed."""
    v = {**IDENTITY, **values}
    a = math.radians(v["angle"])
    size = np.diag([v["mirror"] * v["scale"], v["scale"], 1.0])
    turn = np.array([[math.cos(a), math.sin(a), 0], [-math.sin(a), math.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [-v["tilt_x"], -v["tilt_y"], 1.0]])
    shift = np.array([[1, 0, v["shift_x"]], [0, 1, v["shift_y"]], [0, 0, 1.0]])
    back = np.linalg.inv(shift @ tilt @ turn @ size)
    side = len(page)
    out = np.empty((side, side))
    for row in range(side):
        for column in range(side):
            x, y, d = back @ [(2 * column + 1) / side - 1, (2 * row + 1) / side - 1, 1]
            px, py = ((x / d + 1) * side - 1) / 2, ((y / d + 1) * side - 1) / 2
            left, top, total = math.floor(px), math.floor(py), 0.0
            for j in (top, top + 1):
                for i in (left, left + 1):
                    inside = 0 <= i < side and 0 <= j < side
                    weight = (1 - abs(px - i)) * (1 - abs(py - j))
                    total += weight * (page[j, i] if inside else 255)
            out[row, column] = total
    return out


@pytest.mark.parametrize("values", [{n: v} for n, v in GEOMETRY.items()] + [GEOMETRY])
def test_the_warp_is_that_of_a_slow_reference(page, values):
    small = page[:, :, 40:104, 40:104]
    ours = warp(small.float(), matrices(changed(**values)), 255.0)[0, 0].numpy()
    assert np.abs(ours - slow_warp(small[0, 0].numpy().astype(float), values)).max() < 0.05


def test_a_rotation_is_pillows_bilinear_rotation(page):
    theirs = Image.fromarray(page[0, 0].numpy()).rotate(3, Image.Resampling.BILINEAR, fillcolor=255)
    ours = augment(page, changed(angle=3.0))[0, 0].int()
    inner = (slice(4, -4), slice(4, -4))  # at the very edge Pillow does not blend with the paper
    difference = (ours - torch.from_numpy(np.array(theirs)).int()).abs()[inner]
    assert difference.max() <= 2 and not ours[inner].equal(page[0, 0].int()[inner])


def test_blur_is_a_convolution_with_a_gaussian_and_keeps_what_is_even(page):
    row = torch.zeros(1, 1, 41, 41)
    row[..., 20, 20] = 1.0
    place = torch.arange(-20, 21).double()
    bell = torch.exp(-(place**2) / 2 / 1.5**2)
    expected = torch.outer(bell, bell) / bell.sum() ** 2
    ours = blurred(row, torch.tensor([1.5]).double())[0, 0]
    assert (ours - expected).abs().max() < 2e-4  # the kernel ends at four and a half px
    even = torch.full((2, 1, 16, 16), 90.0)
    assert torch.allclose(blurred(even, torch.tensor([0.0, 2.0]).double()), even, atol=1e-3)
    both = blurred(page.float().expand(2, -1, -1, -1), torch.tensor([0.0, 1.0]).double())
    assert both[0].round().equal(page[0].float()) and not both[1].round().equal(page[0].float())


def test_brightness_contrast_and_noise_do_what_they_say():
    grey = torch.full((1, 1, 128, 128), 100, dtype=torch.uint8)
    assert augment(grey, changed(bright=0.2)).unique().tolist() == [151]
    assert augment(grey, changed(contrast=0.5)).unique().tolist() == [114]
    noisy = augment(grey, changed(noise=0.05)).float()
    assert abs(noisy.mean() - 100) < 0.5 and abs(noisy.std() - 0.05 * 255) < 0.5


def test_mirroring_mirrors(page):
    assert augment(page, changed(mirror=-1.0)).equal(page.flip(-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_paper_comes_in_from_outside_in_every_channel(channels):
    ink = torch.zeros(1, channels, 64, 64, dtype=torch.uint8)
    out = augment(ink, changed(scale=0.5), paper=200.0)
    assert out[..., :10, :].unique().tolist() == [200] and out[..., 30:34, 30:34].max() == 0


def test_what_is_drawn_lies_within_the_settings_and_flips_only_when_asked():
    settings = AugmentSettings(augment=True)
    changes = draw(settings, 0, list(range(400)))
    limits = {
        "angle": (-3, 3),
        "scale": (0.8, 1.2),
        "tilt_x": (-0.03, 0.03),
        "shift_y": (-0.03, 0.03),
        "bright": (-0.1, 0.1),
        "contrast": (0.8, 1.2),
        "blur": (0, 0.7),
        "noise": (0, 0.05),
        "mirror": (1, 1),
    }
    for name, (low, high) in limits.items():
        found = changes.values[name]
        assert low <= found.min() and found.max() <= high
        assert low == high or found.max() - found.min() > 0.9 * (high - low)
    flipped = draw(AugmentSettings(augment=True, augment_flip=0.25), 0, list(range(400)))
    assert 60 < int((flipped.values["mirror"] < 0).sum()) < 140


def test_a_page_gets_the_same_whatever_batch_and_process_it_is_in(page):
    pages = page.expand(4, -1, -1, -1)
    settings = AugmentSettings(augment=True)

    def batch(owners) -> Batch:
        visual = 13 * len(owners)
        ids = torch.zeros(1, 1 + visual, dtype=torch.long)
        mask = torch.ones_like(ids, dtype=torch.bool)
        images = mask.clone()
        images[:, 0] = False
        return Batch(
            ids, mask, images, torch.full_like(ids, -100), pages[: len(owners)], owners=owners
        )

    whole = augment_batch(batch((0, 0, 1, 2)), settings, 7, range(10, 13), [255.0] * 3).pages
    assert augment_batch(batch((0, 0)), settings, 7, [10], [255.0]).pages.equal(whole[:2])
    assert augment_batch(batch((0, 1)), settings, 7, range(11, 15), [255.0] * 4).pages.equal(
        whole[2:]
    )
    assert not whole[0].equal(whole[1])  # two pages of one sample differ
    assert not augment_batch(batch((0, 0)), settings, 8, [10], [255.0]).pages.equal(whole[:2])
    off = AugmentSettings()
    assert augment_batch(batch((0, 0)), off, 7, [10], [255.0]).pages.equal(pages[:2])


def test_training_with_augmentation_resumes_exactly_and_leaves_evaluation_alone(
    tmp_path, jsonl, capsys
):
    common = words(
        "--model tiny --data {} --max-steps 2 --batch-size 2 --val-samples 1 --log-every 1 "
        "--save-every 1 --eval-every 0 --answer-samples 0 --threads 1",
        jsonl,
    )

    def run(name, *more) -> list:
        assert train.main([*common, "--out", str(tmp_path / name), *more]) == 0
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [(line["kind"], line["step"], line["loss"]) for line in lines if "loss" in line]

    whole = run("whole", "--augment", "--augment-flip", "0.5")
    assert "mirrors pages" in capsys.readouterr().out
    plain = run("plain")
    assert whole[0] == plain[0] and whole[1] != plain[1]  # evaluation before, first step
    first = str(tmp_path / "whole" / "checkpoints" / "step-000001")
    resumed = run("resumed", "--augment", "--augment-flip", "0.5", "--resume", first)
    assert resumed[-1] == whole[-1] and resumed[0] == whole[2]
    code = train.main(["--augment", "--mode", "gundam", "--out", str(tmp_path / "no")])
    assert code == 2 and "--augment: not with --mode gundam" in capsys.readouterr().err
