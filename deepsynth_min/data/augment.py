"""Augmentation: each page as if it had been scanned a little askew, in one warp on the device.

In: pages [N, C, h, w] uint8, on whatever device, and where each page's sample stands in the run's
endless sequence. Out: pages of the same shape and type.

The one idea: every geometric change is a 3 x 3 matrix, so rotation, perspective, scale, shift and
mirroring are multiplied together first, and the page is interpolated once, by one `grid_sample` for
the whole batch; what the warp brings in from outside is paper. Brightness, contrast, blur and noise
follow on the same float image, and one rounding brings it back to uint8.

What a page gets is drawn from (seed, number of its sample) on the CPU, so it depends neither on the
number of processes nor on where a run was interrupted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..model.batch import Batch
from ..settings import AugmentSettings, Settings

IDENTITY = {
    "angle": 0.0,
    "tilt_x": 0.0,
    "tilt_y": 0.0,
    "scale": 1.0,
    "shift_x": 0.0,
    "shift_y": 0.0,
    "mirror": 1.0,
    "bright": 0.0,
    "contrast": 1.0,
    "blur": 0.0,
    "noise": 0.0,
}
GEOMETRY = ("angle", "tilt_x", "tilt_y", "scale", "shift_x", "shift_y", "mirror")
MIRRORED = "--augment-flip mirrors pages: their text then consists of letters that nobody writes"


@dataclass(frozen=True)
class Changes:
    """What is done to N pages: a float64 value per page for each name in IDENTITY, and its noise's
    seed."""

    values: dict[str, Tensor]
    seeds: list[int]

    @classmethod
    def none(cls, pages: int) -> "Changes":
        values = {name: torch.full((pages,), value).double() for name, value in IDENTITY.items()}
        return cls(values, [0] * pages)


def draw(how: AugmentSettings, seed: int, numbers: list[int]) -> Changes:
    """Random changes for the pages of samples `numbers` (a number for each page, in order)."""
    rows, seeds, seen = [], [], {}
    for number in numbers:
        place = seen[number] = seen.get(number, -1) + 1  # of the page in its sample
        chance = np.random.RandomState([seed % 2**32, 5, number % 2**32, number >> 32, place])
        even = chance.uniform(-1, 1, 9)
        rows.append(
            {
                "angle": how.augment_rotation * even[0],
                "tilt_x": how.augment_perspective * even[1],
                "tilt_y": how.augment_perspective * even[2],
                "scale": 1 + how.augment_scale * even[3],
                "shift_x": how.augment_shift * even[4],
                "shift_y": how.augment_shift * even[5],
                "mirror": -1.0 if chance.random_sample() < how.augment_flip else 1.0,
                "bright": how.augment_brightness * even[6],
                "contrast": 1 + how.augment_contrast * even[7],
                "blur": how.augment_blur * abs(even[8]),
                "noise": how.augment_noise * chance.random_sample(),
            }
        )
        seeds.append(int(chance.randint(2**31 - 1)))
    values = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in IDENTITY
    }
    return Changes(values, seeds)


def matrices(changes: Changes) -> Tensor:
    """[N, 3, 3]: from a place on the new page to the place on the old one that it shows.

    Coordinates run from -1 to 1 over the page, x to the right, y down. Applied to the old page in
    order: mirroring, scale, rotation (counter-clockwise, degrees), perspective, shift.
    """
    v = changes.values
    angle = torch.deg2rad(v["angle"])
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)

    def stack(*rows: object) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)  # [N, 3, 3]

    # Each is the inverse of what is done to the page, so the last comes first.
    shift = stack((one, zero, -v["shift_x"]), (zero, one, -v["shift_y"]), (zero, zero, one))
    tilt = stack((one, zero, zero), (zero, one, zero), (v["tilt_x"], v["tilt_y"], one))
    turn = stack(
        (angle.cos(), -angle.sin(), zero), (angle.sin(), angle.cos(), zero), (zero, zero, one)
    )
    size = stack(
        (v["mirror"] / v["scale"], zero, zero), (zero, 1 / v["scale"], zero), (zero, zero, one)
    )
    return size @ turn @ tilt @ shift


def warp(pages: Tensor, matrix: Tensor, paper: float | Tensor) -> Tensor:
    """float [N, C, h, w], seen through matrix [N, 3, 3]; bilinear, `paper` from outside."""
    N, _, h, w = pages.shape
    x = (torch.arange(w, device=pages.device) * 2 + 1) / w - 1
    y = (torch.arange(h, device=pages.device) * 2 + 1) / h - 1
    m = matrix.to(pages).view(N, 9, 1, 1)
    u, v, d = (m[:, i] * x + (m[:, i + 1] * y[:, None] + m[:, i + 2]) for i in (0, 3, 6))
    places = torch.stack([u / d, v / d], dim=-1)  # [N, h, w, 2]
    # Outside counts as 0, so paper is made 0 for the time being.
    moved = F.grid_sample(pages - paper, places, "bilinear", "zeros", align_corners=False)
    return moved + paper


def blurred(pages: Tensor, sigma: Tensor) -> Tensor:
    """Each page under its own Gaussian of `sigma` px (0: unchanged); edges are continued."""
    N, C, h, w = pages.shape
    reach = max(1, math.ceil(3 * float(sigma.max())))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-((place / sigma.clamp(min=1e-3)[:, None]) ** 2) / 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(pages)  # [N, 2r+1]
    kernel = kernel.repeat_interleave(C, 0)[:, None]  # [N*C, 1, 2r+1]
    x = F.pad(pages.reshape(1, N * C, h, w), (reach,) * 4, "replicate")
    x = F.conv2d(x, kernel[:, :, None, :], groups=N * C)
    return F.conv2d(x, kernel[:, :, :, None], groups=N * C).view(N, C, h, w)


def augment(pages: Tensor, changes: Changes, paper: float | Tensor = 255.0) -> Tensor:
    """uint8 [N, C, h, w] -> the same, changed; only what is asked for is computed. paper: the grey
    of all, or float [N, 1, 1, 1]."""
    assert pages.shape[2] == pages.shape[3], "angles are angles on a square page only"
    v = changes.values
    x = pages.float()
    asked = {name: bool((v[name] != value).any()) for name, value in IDENTITY.items()}
    if any(asked[name] for name in GEOMETRY):
        x = warp(x, matrices(changes), paper)

    def each(name: str) -> Tensor:
        return v[name].to(x)[:, None, None, None]

    if asked["blur"]:
        x = blurred(x, v["blur"])
    if asked["contrast"] or asked["bright"]:
        x = (x - 127.5) * each("contrast") + 127.5 + 255 * each("bright")
    if asked["noise"]:
        streams = [torch.Generator(x.device).manual_seed(seed) for seed in changes.seeds]
        grain = [torch.randn(x.shape[2:], generator=g, device=x.device) for g in streams]
        x = x + 255 * each("noise") * torch.stack(grain)[:, None]
    return x.round().clamp(0, 255).to(torch.uint8)


def augment_batch(
    batch: Batch, how: AugmentSettings, seed: int, places: Sequence[int], papers: Sequence[float]
) -> Batch:
    """A batch with its pages changed; of each sample: where it stands in the run's sequence, and
    the grey of its paper."""
    if not how.augment or not len(batch.pages):
        return batch
    changes = draw(how, seed, [places[owner] for owner in batch.owners])
    paper = torch.tensor([papers[owner] for owner in batch.owners], dtype=torch.float32)
    paper = paper.to(batch.pages.device)[:, None, None, None]
    return replace(batch, pages=augment(batch.pages, changes, paper))


def check(settings: Settings) -> None:
    """Raises UserError for what cannot be augmented."""
    if settings.augment.augment and settings.model.mode == "gundam":
        raise UserError("--augment: not with --mode gundam, whose tiles would not fit together")
