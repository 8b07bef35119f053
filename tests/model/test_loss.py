"""The chunked loss against the naive one."""

import pytest
import torch

from deepsynth_min.model import loss
from deepsynth_min.model.loss import chunked_cross_entropy, cross_entropy


def test_the_chunked_loss_and_its_gradients_equal_the_naive_ones(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", 4)  # 11 rows: two full chunks and a part
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (11,))
    ours = chunked_cross_entropy(hidden, weight, targets)
    naive = cross_entropy(hidden, weight, targets)
    assert torch.allclose(ours, naive)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(naive, (hidden, weight))
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_no_label_at_all_is_a_loss_of_zero_with_a_gradient_of_zeros():
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    total = chunked_cross_entropy(hidden, weight, torch.empty(0, dtype=torch.long))
    assert total.item() == 0
    total.backward()
    assert weight.grad.eq(0).all()


def test_a_second_backward_is_refused_instead_of_scaling_twice():
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(30, 8)
    total = chunked_cross_entropy(hidden, weight, torch.tensor([1, 2, 3])) * 2
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()


def test_under_autocast_the_gradients_are_those_of_the_rounded_product():
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 32, requires_grad=True), torch.randn(30, 32, requires_grad=True)
    targets = torch.randint(30, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked_cross_entropy(hidden, weight, targets)
        naive = cross_entropy(hidden, weight, targets)
    assert ours.dtype == torch.float32 and torch.allclose(ours, naive, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(naive, (hidden, weight))
    ):
        assert a.dtype == torch.float32 and (a - b).norm() / b.norm() < 0.01


@pytest.mark.parametrize("kept", (torch.float32, torch.bfloat16))
def test_gradients_of_chunks_are_added_up_as_exactly_as_one_product_rounds(kept):
    """1,600 rows in five chunks; added up in bf16 they are off 1.66 times as far."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(1600, 64).bfloat16(), torch.randint(4096, (1600,))
    weight = (torch.randn(4096, 64) / 8).bfloat16()
    d_logits = torch.softmax(hidden.double() @ weight.double().t(), -1)
    d_logits[torch.arange(1600), targets] -= 1
    exact = d_logits.t() @ hidden.double()
    trains = weight.to(kept).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        chunked_cross_entropy(hidden, trains, targets).backward()
    off = [(made - exact).norm() for made in (trains.grad, d_logits.bfloat16().t() @ hidden)]
    assert trains.grad.dtype == kept and off[0] < 1.5 * off[1]
