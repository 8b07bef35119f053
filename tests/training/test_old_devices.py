"""GPUs before compute capability 8.0, and MPS: which products they get, and which are refused."""

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from commands import words
from gpu_branch import GpuBranch
from run_files import losses
from small_model import SMALL
from small_steps import build, ragged_batch, step
from torch import nn

from deepsynth_min.errors import UserError
from deepsynth_min.model import experts
from deepsynth_min.training import precision
from deepsynth_min.training.distributed import choose_device

CUDA, MPS = torch.device("cuda"), torch.device("mps")


@pytest.fixture
def t4(monkeypatch):
    """The capability that a Tesla T4 reports, beside a CPU that computes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@pytest.mark.parametrize("sizes", ((3, 0, 4, 1), (0, 0, 0, 8), (8, 0, 0, 0)))
def test_products_by_expert_and_their_gradients_are_those_of_the_grouped_one(sizes):
    torch.manual_seed(0)
    ends = torch.tensor(sizes).cumsum(0).int()
    rows, matrices = torch.randn(8, 16), torch.randn(4, 16, 24)
    found = []
    for product in (experts.product_by_expert, experts.product_by_group):
        given = [nn.Parameter(rows.clone()), nn.Parameter(matrices.clone())]
        out = product(*given, ends)
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for ours, grouped in zip(*found):
        torch.testing.assert_close(ours, grouped, rtol=1e-5, atol=1e-5)


def test_a_gpu_before_ampere_and_mps_have_no_grouped_product(t4, monkeypatch):
    assert not experts.has_grouped_product(CUDA) and not experts.has_grouped_product(MPS)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert experts.has_grouped_product(CUDA)


@pytest.mark.parametrize("tune", ("decoder", "lora"))
def test_a_step_on_such_a_gpu_is_that_of_one_with_grouped_products(t4, monkeypatch, tune):
    def refuse(*_, **__):
        raise AssertionError("a T4 has no grouped product")

    model, batch = build(SMALL, tune), ragged_batch()
    with monkeypatch.context() as newer:
        newer.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        with GpuBranch():
            grouped = step(model, batch)
    monkeypatch.setattr(experts.F, "grouped_mm", refuse)
    with GpuBranch():
        ours = step(model, batch)
    assert ours[0] == pytest.approx(grouped[0], rel=1e-5)
    for name, gradient in grouped[1].items():
        assert (ours[1][name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, name


@pytest.mark.slow
def test_a_run_in_fp16_by_expert_is_that_of_grouped_products(tmp_path, monkeypatch):
    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    steps = words("--max-steps 4 --eval-every 0 --save-every 0 --tune decoder --precision fp16")
    grouped = run(tmp_path, *steps, out="grouped")
    monkeypatch.setattr(experts, "has_grouped_product", lambda device: False)
    by_expert = run(tmp_path, *steps, out="by-expert")
    assert losses(by_expert, "train") == pytest.approx(losses(grouped, "train"), rel=1e-3)


def test_on_a_gpu_float32_is_float32_and_no_new_shape_is_planned(monkeypatch):
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    before = cudnn.allow_tf32, cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # there is none here
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    cudnn.allow_tf32 = True
    cuda.enable_cudnn_sdp(True)
    try:
        assert choose_device("cuda:0", torch.get_num_threads()) == torch.device("cuda", 0)
        assert (cudnn.allow_tf32, cuda.cudnn_sdp_enabled()) == (False, False)
    finally:
        cudnn.allow_tf32 = before[0]
        cuda.enable_cudnn_sdp(before[1])


def test_bf16_is_refused_there_in_one_line_and_fp16_is_not(t4):
    with pytest.raises(UserError) as refused:
        precision.check_device(CUDA, "bf16")
    assert str(refused.value) == (
        "--precision bf16: Tesla T4 has compute capability 7.5, and bf16 begins at 8.0; "
        "use --precision fp16"
    )
    precision.check_device(CUDA, "fp16")


def test_a_line_says_which_kernels_a_device_gets(t4):
    assert precision.kernels(CUDA, "fp16", False) == (
        "Tesla T4 (compute capability 7.5): products in fp16, experts one after the other, "
        "SAM's attention by scaled_dot_product_attention"
    )
    assert precision.kernels(torch.device("cpu"), "fp32", False).startswith("cpu: products in fp32")
