"""A plain module tree under the official tensor names: what PEFT adapts and merges in tests."""

import torch
from torch import nn


class Leaf(nn.Linear):
    """A linear of the official tree, without bias."""

    def __init__(self, weight: torch.Tensor):
        super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight.data = weight.clone()


class Root(nn.Module):
    """PEFT asks a causal language model for this."""

    def prepare_inputs_for_generation(self):
        raise NotImplementedError


def official_tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Plain modules under the official names: a linear for every matrix of the decoder."""
    root = Root()
    for name, tensor in tensors.items():
        if not name.startswith("model.layers.") or not name.endswith("_proj.weight"):
            continue
        *parts, last = name.removesuffix(".weight").split(".")
        node = root
        for part in parts:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node._modules[part]
        node.add_module(last, Leaf(tensor))
    return root
