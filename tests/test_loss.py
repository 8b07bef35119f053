"""The chunked loss against the naive one."""

import torch
import torch.nn.functional as F

from deepsynth_min import loss
from deepsynth_min.loss import summed_cross_entropy


def test_the_chunked_loss_and_its_gradients_equal_the_naive_ones(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", 4)  # 11 rows: two full chunks and a part
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (11,))
    ours = summed_cross_entropy(hidden, weight, targets)
    naive = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    assert torch.allclose(ours, naive)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(naive, (hidden, weight))
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_no_label_at_all_is_a_loss_of_zero_with_a_gradient_of_zeros():
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    total = summed_cross_entropy(hidden, weight, torch.empty(0, dtype=torch.long))
    assert total.item() == 0
    total.backward()
    assert weight.grad.eq(0).all()
