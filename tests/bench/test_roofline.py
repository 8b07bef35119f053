"""The step on paper: it runs without a number read back, and its counts are what they were."""

import argparse
import json
from pathlib import Path

import common
import pytest
import roofline
import torch
import torch.nn.functional as F
import train_step
from small_model import SMALL
from torch import nn

from deepsynth_min.model.batch import visual_tokens
from deepsynth_min.model.encoders import sam_clip as encoder
from deepsynth_min.model.encoders.sam_clip import SamBlock
from deepsynth_min.model.experts import Experts
from deepsynth_min.model.shape import flops
from deepsynth_min.model.window_blocks import window_blocks
from deepsynth_min.planning.paper import Kernel
from deepsynth_min.planning.pretend import CUDA, on_paper

RECORDED = json.loads(Path(__file__).with_name("paper.json").read_text("utf-8"))
H100 = roofline.GPUS["h100"]


@pytest.fixture(autouse=True)
def small_preset(monkeypatch):
    monkeypatch.setitem(common.SIZES, "small", SMALL)


def options(words: str) -> argparse.Namespace:
    given = train_step.parser("").parse_args(["--precision", "bf16", *words.split()])
    given.preset = "small"
    return given


def paper(words: str) -> roofline.Paper:
    return roofline.our_paper(options(f"--batch-size 3 --answer 24 {words}"))


# -- nothing is read back -------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ("decoder", "lora", "qlora", "projector+decoder", "all"))
def test_the_step_runs_without_reading_a_number_back(tune):
    step = paper(f"--tune {tune}")
    assert all(step.kernels[part] for part in ("encode", "forward", "backward", "optimizer"))


@pytest.mark.slow  # those recorded below run without it too
@pytest.mark.parametrize(
    "form",
    (
        "--pack",
        "--grid 2x1",
        "--grid 2x1 --pack",
        "--attention-window 8",
        "--attention-window 8 --pack",
        "--cached",
        "--cached --grid 2x1",
        "--compile",
        "--precision fp16",
        "--precision fp32",
        "--tune all --compile --pack",
        "--tune decoder --weights bf16",
        "--tune decoder --optimizer adamw8bit",
        "--tune decoder --optimizer paged_adamw8bit",
        "--tune qlora --attention-window 8 --grid 2x1 --pack",
    ),
)
def test_so_it_does_in_every_form(form):
    paper(f"--tune lora {form}" if "--tune" not in form else form)


@pytest.mark.parametrize(
    "read", (lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x[x > 0])
)
@pytest.mark.parametrize("layer", (SamBlock, Experts))
def test_a_read_back_in_a_layer_is_an_error(monkeypatch, read, layer):
    forward = layer.forward

    def reading(self, x, *rest):
        read(x)
        return forward(self, x, *rest)

    monkeypatch.setattr(layer, "forward", reading)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        paper("--tune decoder")


# -- what is counted ------------------------------------------------------------------------------


def figures(step: roofline.Paper) -> dict[str, list[int]]:
    """Part -> kernels, bytes, FLOPs."""
    return {
        part: [sum(k.launches for k in own), sum(k.bytes for k in own), sum(k.flops for k in own)]
        for part, own in step.kernels.items()
    }


def differs(found: dict, recorded: dict) -> list[str]:
    """Parts with a figure more than 3 % off."""
    return [
        part
        for part in recorded
        if any(abs(f - r) > 0.03 * r for f, r in zip(found[part], recorded[part]))
    ]


@pytest.mark.parametrize("words", RECORDED)
def test_kernels_bytes_and_flops_are_those_recorded(words):
    """`python tests/bench/test_roofline.py` records them anew; a change wants a reason."""
    found = figures(paper(words))
    assert not differs(found, RECORDED[words]), found


def test_a_copy_more_in_the_encoder_is_seen(monkeypatch):
    attend = encoder.attend_by_score
    copied = lambda q, k, v, *bias: attend(q.clone(), k.clone(), v.clone(), *bias)  # noqa: E731
    monkeypatch.setattr(encoder, "attend_by_score", copied)
    assert differs(figures(paper("--tune lora")), RECORDED["--tune lora"]) == ["encode"]


def test_flops_of_the_encoder_are_those_of_the_formula():
    found = figures(paper("--precision fp32 --tune lora --no-flex"))["encode"][2]
    projector = 2 * 4 * SMALL.feature_width * SMALL.decoder.hidden_size
    assert found == 3 * (flops.encoder_flops(SMALL, 128, as_done=True) + projector)


def kernels(work) -> list[Kernel]:
    with on_paper() as (count, _):
        work()
        return count.take()


def on_gpu(*shape: int, dtype=torch.float32, **options) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=CUDA, **options)


@pytest.mark.parametrize(
    "work, sizes",
    (
        (lambda: on_gpu(8, 4).t().view(4, 2, 4)[1:].unsqueeze(0).expand(9, 3, 2, 4), []),
        (lambda: on_gpu(8, 4) + on_gpu(4), [128 + 16 + 128]),
        (lambda: on_gpu(8, 4).add_(on_gpu(1, 4).expand(8, 4)), [128 + 16 + 128]),
        (lambda: on_gpu(8, 4).zero_(), [128]),
        (lambda: on_gpu(8, 4).copy_(on_gpu(8, 4)), [256]),
        (lambda: F.embedding(on_gpu(5, dtype=torch.int64), on_gpu(99, 4)), [80 + 40 + 80]),
        (lambda: torch.mm(on_gpu(8, 4), on_gpu(4, 2), out=on_gpu(8, 2)), [128 + 32 + 64]),
        (lambda: torch.zeros(6).to(CUDA), [24]),
    ),
)
def test_bytes_of_an_operation(work, sizes):
    assert [kernel.bytes for kernel in kernels(work)] == sizes


def test_fused_attention_is_one_kernel_and_causality_halves_it():
    shape = {"dtype": torch.bfloat16}
    attend = lambda **how: kernels(  # noqa: E731
        lambda: F.scaled_dot_product_attention(
            *(on_gpu(2, 3, 10, 16, **shape) for _ in range(3)), **how
        )
    )
    (whole,), (causal,) = attend(), attend(is_causal=True)
    assert whole.flops == 4 * 2 * 3 * 10 * 10 * 16 == 2 * causal.flops
    assert whole.bytes == 4 * (2 * 3 * 10 * 16 * 2) + 2 * 3 * 10 * 4  # and each row's scale


def test_a_window_is_one_kernel_a_layer_with_the_flops_of_the_blocks_it_reads():
    options = "--tune decoder --attention-window 8 --pack"
    forward = [k for k in paper(options).kernels["forward"] if k.kind == "attention"]
    config, prompt = SMALL.decoder, 1 + visual_tokens(128, 128) + train_step.PROMPT
    lengths, prompts = (prompt + 24,) * 3, (prompt,) * 3
    pairs = window_blocks(lengths, prompts, sum(lengths), 8, torch.device("cpu")).pairs
    assert len(forward) == config.num_hidden_layers
    assert {k.flops for k in forward} == {4 * pairs * config.hidden_size}


def test_products_under_autocast_are_in_16_bit_and_a_weight_is_cast_once():
    linear = nn.Linear(4, 2, device="meta")

    def work():
        with torch.autocast("cuda", torch.bfloat16):
            for _ in range(3):
                out = linear(torch.empty(8, 4, device="meta", dtype=torch.bfloat16))
        assert out.dtype == torch.bfloat16

    names = [kernel.name for kernel in kernels(work)]
    assert names == ["_to_copy", "_to_copy", "addmm", "addmm", "addmm"]


def test_a_compiled_region_is_one_pass_over_what_enters_and_leaves_it():
    class Gate(nn.Module):
        def forward(self, x):
            return F.silu(x) * 3 + x.square()

    gate, x = Gate(), torch.empty(100, device="meta", requires_grad=True)

    def work():
        gate(x).sum().backward()

    eager = kernels(work)
    with on_paper() as (count, _):
        count.compiled([gate])
        work()
        compiled = count.take()
    forward = [kernel for kernel in compiled if kernel.name == "compiled"]
    assert len(forward) == 2 and len(compiled) < len(eager) / 2
    # In and out; and x's silu is needed by nobody else.
    assert forward[0].bytes in (800, 1200) and forward[1].bytes <= 1600


def test_memory_is_what_is_alive():
    with on_paper() as (count, _):
        a = on_gpu(1000)
        b = a.view(10, 100)[2:]  # the same memory
        assert count.held == 4000
        c = a + 1
        assert count.held == 8000 == count.peak
        del a, c
        assert count.held == 4000  # b holds it
        del b
        assert (count.held, count.peak) == (0, 8000)


def test_memory_of_a_step_is_by_kind_and_peaks_before_its_backward_ends():
    step = paper("--tune decoder")
    steps = step.held["moments"] - 2 * step.held["gradients"]  # a number for each parameter
    assert 0 < steps < 1000
    assert max(step.peak.values()) in (step.peak["forward"], step.peak["backward"])
    assert step.activations > 0
    cached = paper("--tune lora --cached")
    assert cached.peak["encode"] < step.peak["encode"]


def test_a_kernel_takes_the_longest_of_its_three_times():
    bf16 = torch.bfloat16
    kernel = lambda *what, **more: roofline.seconds(Kernel("", *what, **more), H100)  # noqa: E731
    assert kernel("memory", 3 * 10**9) == pytest.approx(1e-3, rel=0.01)
    assert kernel("product", 1, 525 * 10**9, bf16) == pytest.approx(1e-3, rel=0.01)
    assert kernel("attention", 1, 350 * 10**9, bf16) == pytest.approx(1e-3, rel=0.01)
    assert kernel("memory", 1, launches=3) == 6e-6
    assert kernel("transfer", 64 * 10**6) == 1e-3


@pytest.mark.parametrize(
    "words, said",
    (("--gpu t4", "computes no bf16"), ("--peer --tune qlora", "for --tune decoder and lora")),
)
def test_what_cannot_be_counted_is_said_in_one_line(words, said, capsys):
    assert roofline.exit_code(roofline.run, words.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def last_line(words: str, capsys) -> dict:
    roofline.run(f"--preset tiny --tune lora --batch-size 2 --answer 8 {words}".split())
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_says_what_the_tables_do(capsys):
    last = last_line("--gpu a100", capsys)["deepsynth_min"]
    assert last["floor_s"] < last["device_s"] and last["held"]["peak"] > last["held"]["weights"]
    # A product for each expert where torch has no grouped one: 3 layers, 16 experts.
    assert last["launches"] - last_line("", capsys)["deepsynth_min"]["launches"] == 4 * 3 * 15


@pytest.mark.slow
def test_the_peers_step_is_counted_too(capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    last = last_line("--peer", capsys)
    assert last["deepsynth_min"]["launches"] < last["transformers"]["launches"]
    assert last["ratio"] > 1


if __name__ == "__main__":
    common.SIZES["small"] = SMALL
    found = {words: figures(paper(words)) for words in RECORDED}
    text = json.dumps(found).replace('], "', '],\n  "').replace('}, "', '},\n "')
    Path(__file__).with_name("paper.json").write_text(text + "\n", "utf-8")
