"""Products by oneDNN are those of F.linear, and so are their gradients."""

import pytest
import torch
import torch.nn.functional as F

from deepsynth_min import linear as module
from deepsynth_min.linear import Linear, linear


def results(form, trained: tuple[bool, ...], bias: bool) -> list[torch.Tensor | None]:
    """Output and gradients of x [2, 5, 24], weight [16, 24] and bias; x is not contiguous."""
    torch.manual_seed(0)
    leaves = [torch.randn(5, 2, 24), torch.randn(16, 24), torch.randn(16)][: 2 + bias]
    for leaf, wanted in zip(leaves, trained):
        leaf.requires_grad = wanted
    out = form(leaves[0].transpose(0, 1), *leaves[1:])
    if out.requires_grad:
        out.backward(torch.randn(2, 5, 16))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.fixture
def onednn(monkeypatch):
    """Every product is large enough; returns how many were made."""
    if not module._PRESENT:
        pytest.skip("this build or processor has no oneDNN")
    made, real = [], module._onednn
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(module, "_onednn", lambda *all: made.append(1) or real(*all))
    return made


@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (False, True, True),
                                     (False, False, False)])  # fmt: skip
def test_output_and_gradients_are_those_of_torch(onednn, trained, bias):
    ours = results(linear, trained, bias)
    assert len(onednn) == 1 + sum(trained[:2])
    for own, theirs in zip(ours, results(F.linear, trained, bias), strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            torch.testing.assert_close(own, theirs)


def test_sixteen_bits_small_products_and_a_user_who_says_no_are_left_to_torch(onednn, monkeypatch):
    layer, x = Linear(24, 16), torch.randn(5, 24)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.bfloat16()(x.bfloat16())
    monkeypatch.setattr(module, "LARGE", 2**26)
    Linear(24, 16)(x)
    assert not onednn


def test_no_rows_give_no_rows(onednn):
    assert Linear(24, 16)(torch.randn(2, 0, 24)).shape == (2, 0, 16)
