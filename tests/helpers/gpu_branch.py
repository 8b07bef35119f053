"""The branches for GPUs, run on a CPU: inside, tensors say that their device is cuda."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class GpuBranch(TorchFunctionMode):
    """What asks a tensor for its device is told cuda; what is asked for there is made here. `asked`
    counts how often."""

    asked = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            self.asked += 1
            return torch.device("cuda")
        here = lambda device: torch.device("cpu")  # noqa: E731
        args, kwargs = tree_map_only(torch.device, here, (args, kwargs or {}))
        return func(*args, **kwargs)
