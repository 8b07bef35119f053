"""Which parameters train, and the proof that the others never moved.

In: a model and the setting `--tune`. Out: `requires_grad` set, and three checks of it.

The one idea: the policy is a set of parameter names, written down once, and what really happens is
compared with it three times: before the first step (policy = what autograd sees = what the
optimizer holds), after the first backward (every trainable parameter has a finite gradient, no
frozen one has any), and at the end (the bytes of every frozen parameter are the same as at the
start).
"""

from collections.abc import Collection, Iterable

import torch
from torch import nn

from ..model.deepseek_ocr import ENCODER, part_of
from ..model.encoders.query_encoder import query_name
from ..model.weights import local_part, tensor_digest

_DECODER = {"embedding", "decoder", "routed experts", "head"}
TUNED_PARTS = {
    "decoder": _DECODER,
    "projector+decoder": _DECODER | {"projector"},
    "all-but-sam": _DECODER | {"projector"} | ENCODER - {"SAM"},  # as the official models were made
    "all": _DECODER | {"projector"} | ENCODER,
    "lora": {"adapter"},
    "qlora": {"adapter"},
    "projector+lora": {"adapter", "projector"},
    "projector+qlora": {"adapter", "projector"},
}
# In the official checkpoint, but no part of the computation: nothing could train it.
UNUSED = {"model.vision_model.embeddings.patch_embedding.weight"}


class FreezeError(RuntimeError):
    """What trains is not what the policy says."""


def freeze(model: nn.Module, tune: str, sides: Collection[int] = ()) -> set[str]:
    """Sets requires_grad everywhere; returns the names of the parameters that train.

    sides: px, of the pages and tiles that will be read: learned queries for other sizes stay what
    they are, which without a gradient weight decay alone would change. Empty: any side.
    """
    parts, unused = TUNED_PARTS[tune], set(UNUSED)
    for side in model.config.page_format.sides:
        if sides and side not in sides:
            unused.add(f"model.qwen2_model.{query_name(side)}.weight")
    policy = set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = part_of(name) in parts and name not in unused
        if parameter.requires_grad:
            policy.add(name)
    return policy


def _fail(claim: str, names: Iterable[str]) -> None:
    names = sorted(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    raise FreezeError(f"freeze audit: {claim}: {', '.join(names[:10])}{more}")


def check_start(
    model: nn.Module, optimizer: torch.optim.Optimizer, policy: set[str], tune: str = ""
) -> None:
    """The optimizer's set, the trainable set and the policy's must be equal; neither side empty,
    but of --tune all, where nothing need be frozen."""
    names = {id(p): name for name, p in model.named_parameters()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = [f"a tensor of shape {list(p.shape)}" for p in held if id(p) not in names]
    optimized = {names[id(p)] for p in held if id(p) in names}
    if strangers:
        _fail("in the optimizer but not in the model", strangers)
    for claim, wrong in (
        ("trainable, but not by policy", trainable - policy),
        ("trains by policy, but frozen", policy - trainable),
        ("in the optimizer, but not by policy", optimized - policy),
        ("trains by policy, but not in the optimizer", policy - optimized),
    ):
        if wrong:
            _fail(claim, wrong)
    if not policy:
        raise FreezeError("freeze audit: nothing trains")
    if len(policy) == len(names) and tune != "all":
        raise FreezeError("freeze audit: nothing is frozen")


def check_gradients(model: nn.Module, policy: set[str], without: set[str] = frozenset()) -> None:
    """After a backward: a finite gradient on every trainable parameter, none on a frozen one.

    without: names that got no gradient on any rank (zeros may stand in their place by now).
    """
    parameters = dict(model.named_parameters())
    if touched := [n for n, p in parameters.items() if n not in policy and p.grad is not None]:
        _fail("frozen, but has a gradient", touched)
    if without := without | {n for n in policy if parameters[n].grad is None}:
        _fail("trains, but got no gradient", without)
    if wild := [n for n in policy if not local_part(parameters[n].grad).isfinite().all()]:
        _fail("gradient is not finite", wild)


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Name -> SHA-256 of the bytes of each frozen parameter and of each packed weight's buffers."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= dict(model.named_buffers())
    return {name: tensor_digest(tensor).hex() for name, tensor in frozen.items()}


def check_end(model: nn.Module, before: dict[str, str]) -> None:
    """The frozen parameters are the same ones, with the same bytes, as when `before` was taken."""
    after = fingerprint(model)
    if moved := [name for name in before.keys() | after if before.get(name) != after.get(name)]:
        _fail("frozen, but changed", moved)
