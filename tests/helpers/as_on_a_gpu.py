"""The forms that a GPU gets, computed on the CPU: inside, every tensor says that it lies on "cuda".

In: a block of code that asks `x.device.type` to choose a form. Out: the same numbers to rounding,
by the other form. What is made on "the device" is made on the CPU.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DEVICE = torch.Tensor.device.__get__


class Device(str):
    """What torch takes as a device's name; its type is another."""

    type, index = "cuda", 0


class AsOnAGpu(TorchFunctionMode):
    """`asked` counts how often a tensor was asked where it lies."""

    asked = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func == DEVICE:
            self.asked += 1
            return Device("cpu")
        return func(*args, **(kwargs or {}))
