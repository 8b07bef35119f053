"""A plain module tree under the official tensor names: what PEFT adapts and merges in tests."""

import torch
from torch import nn


class Leaf(nn.Linear):
    """A linear of the official tree."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.weight.data = weight.clone()
        if bias is not None:
            self.bias.data = bias.clone()


class Root(nn.Module):
    """PEFT asks a causal language model for this."""

    def prepare_inputs_for_generation(self):
        raise NotImplementedError


# Matrices that are looked up; and a router's, which is a parameter of its own.
NO_LINEAR = ("position_embedding", "query_768", "query_1024", "gate")


def official_tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Plain modules under the official names: a linear for every matrix that one has, and the
    embedding."""
    root = Root()
    for name, tensor in tensors.items():
        *parts, last = name.removesuffix(".weight").split(".")
        is_matrix = name.endswith(".weight") and tensor.ndim == 2
        if not is_matrix or last in NO_LINEAR:
            continue
        node = root
        for part in parts:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node._modules[part]
        if last == "embed_tokens":
            leaf = nn.Embedding.from_pretrained(tensor.clone(), freeze=False)
        else:
            leaf = Leaf(tensor, tensors.get(name.removesuffix("weight") + "bias"))
        node.add_module(last, leaf)
    return root
