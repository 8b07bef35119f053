"""Small pages that a CPU reads at once, each to the last bit as if it were alone.

In: pages of one size, and the encoder. Out: how many of them it may read at once.

The one idea: of a small page, calls from Python cost as much as its arithmetic, so several should
share them. But a cached page must equal a fresh one whatever pages came beside it, and in which
order a matrix product adds up is the library's choice. It follows from sizes alone: so when as many
pages of a size first come, random ones are read both ways, and those that come go one by one where
these differ. (At 256 px they agree with MKL, at 128 px they do not.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

PATCHES = 2048  # that are read at once at most: 8 pages of 256 px; larger pages gain nothing


class PagesAtOnce:
    """What has been found for each number of pages of each size."""

    def __init__(self, patch: int):
        """patch: side of a patch in px."""
        self.patch = patch
        self.same: dict[tuple, bool] = {}

    def size(self, pages: Tensor, read: Callable[[Tensor, int], Tensor]) -> int:
        """Of uint8 pages [N, C, h, w] how many to read at once; 1 on anything but a CPU.

        read(pages, n): their features, n pages at a time.
        """
        patches = (pages.shape[2] // self.patch) * (pages.shape[3] // self.patch)
        together = min(len(pages), PATCHES // patches)
        if pages.device.type != "cpu" or together < 2:
            return 1
        shape, threads = (together, *pages.shape[1:]), torch.get_num_threads()
        case = (*shape, threads, torch.is_autocast_enabled("cpu"))
        if case not in self.same:
            random = torch.Generator().manual_seed(0)
            probe = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
            self.same[case] = torch.equal(read(probe, together), read(probe, 1))
        return together if self.same[case] else 1
