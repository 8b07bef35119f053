"""Is it right on this device? Rows of gpu.py: each gives lines as soon as it knows them.

In: a device, and whether it is a dry run. Out: `line`s, most of them distances from what the
official code, the plain form of an operation or the CPU gives, with the bar that holds anywhere.

The one idea: every fast form stands beside the plain one of the same file, on the same random
numbers, at the official model's width (a dry run: narrower); in float32 they may differ by what
another order of additions makes, in bf16 by its rounding.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from deepsynth_min import train
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.model.attention import attend, attend_window, attention, window_mask
from deepsynth_min.model.decoder import MixtureOfExperts
from deepsynth_min.model.encoders.relative_attention import (
    attend_by_score,
    attention_with_bias,
    distance_products,
)
from deepsynth_min.model.encoders.sam_clip import SamAttention, attend_with_columns
from deepsynth_min.model.experts import mixture_of_experts, mixture_of_experts_grouped
from deepsynth_min.model.loss import chunked_cross_entropy, cross_entropy
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.window_blocks import attend_in_blocks, window_blocks
from deepsynth_min.training.compile import compile_parts, parts_to_compile
from deepsynth_min.training.precision import autocast

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))
from golden import CASES, GOLDEN, GRADIENT_TOLERANCE, expected, golden_batch  # noqa: E402
from run_files import lines, weights  # noqa: E402

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Relative, of a norm. bf16 keeps 8 binary digits: 0.4 % a rounding, of which some follow another.
APART = {"fp32": 1e-4, "bf16": 3e-2}
STEPS = 20


def line(what: str, value: float | str, unit: str = "", bar: tuple = (), note: str = "") -> dict:
    """One line of the table. bar: (">=" or "<=", the limit, where it holds: right, size, speed)."""
    return {"what": what, "value": value, "unit": unit, "bar": bar, "note": note}


def off(what: str, value: float, limit: float) -> dict:
    return line(what, value, "off", ("<=", limit, "right"))


def distance(ours: Tensor, plain: Tensor) -> float:
    """Relative, in the norm."""
    return ((ours.double() - plain.double()).norm() / plain.double().norm()).item()


def worst(ours: list[Tensor], plain: list[Tensor]) -> float:
    return max(distance(a, b) for a, b in zip(ours, plain))


# -- the official code's numbers ------------------------------------------------------------------


def golden(device: torch.device, dry: bool, precision: str) -> Iterator[dict]:
    """tests/golden, padded and packed: the loss, and in float32 gradients."""
    model = DeepseekOCR.from_pretrained(GOLDEN, torch.float32).to(device)
    for case in CASES:
        for form in ("padded", "packed"):
            batch = golden_batch(case)
            batch = (batch.packed() if form == "packed" else batch).to(device)
            model.zero_grad(set_to_none=True)
            with autocast(device, precision):
                total, count = model.loss(batch)
            (total / count).backward()
            loss = expected()[f"{case}.loss"].item()
            apart = abs(total.item() / count - loss)
            if precision == "fp32":
                yield off(f"golden {case}, {form}: loss", apart, 2e-4)
            else:
                yield off(f"golden {case}, {form}, bf16: loss, relative", apart / loss, 1e-2)
            if precision == "fp32" and case == "base":
                yield off(f"golden {case}, {form}: gradients", _gradients(model, case), 1e-3)


def _gradients(model: DeepseekOCR, case: str) -> float:
    """The largest relative distance; those whose names are the official ones."""
    mine, prefix = dict(model.named_parameters()), f"{case}.train.grad."
    names = [name for name in expected() if name.startswith(prefix)]
    found = [
        distance(mine[short].grad.cpu(), expected()[name])
        for name in names
        if (short := name.removeprefix(prefix)) in mine
    ]
    assert len(found) >= 20 and GRADIENT_TOLERANCE == 1e-3
    return max(found)


# -- forms against each other ---------------------------------------------------------------------


def _sam(device: torch.device, dry: bool, dtype: torch.dtype) -> tuple[SamAttention, Tensor]:
    """A layer's attention and the grid that it sees: the official one's is 64 x 64."""
    config = PRESETS["tiny" if dry else "deepseek-ocr"].sam
    side = config.image_size // config.patch
    torch.manual_seed(0)
    made = SamAttention(config.width, config.heads, side).to(device, dtype)
    for table in (made.rel_pos_h, made.rel_pos_w):
        torch.nn.init.normal_(table, std=0.2)
    return made, torch.randn(1, side, side, config.width, device=device, dtype=dtype)


@torch.no_grad()
def encoder_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """SAM's global attention: the formula, columns in a fused kernel, a compiled kernel (flex)."""
    for precision, dtype in PRECISIONS.items():
        if dry and precision == "bf16":
            return  # on a CPU a compiled kernel takes a quarter of a minute
        layer, x = _sam(device, dry, dtype)
        n, h, w, width = x.shape
        qkv = layer.qkv(x).view(n, h, w, 3, layer.heads, -1).permute(3, 0, 4, 1, 2, 5)
        exact = attention_with_bias(
            *qkv.double(), *(bias.double() for bias in layer.double().axis_biases(qkv[0].double()))
        )
        layer.to(dtype)
        q, k, v = qkv
        bar = APART[precision]
        columns = attend_with_columns(q, k, v, *layer.axis_biases(q))
        yield off(f"SAM's attention, columns, {precision}", distance(columns, exact), bar)
        q, k, v = (part.flatten(2, 3) for part in qkv)
        products = distance_products(q, layer.rel_pos_h, layer.rel_pos_w, h, w)
        scored = attend_by_score(q, k, v, products, h, w).view(exact.shape)
        yield off(f"SAM's attention, flex, {precision}", distance(scored, exact), bar)


def decoder_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """Experts, attention and loss: the plain form and the fast one, with their gradients."""
    config = PRESETS["tiny" if dry else "deepseek-ocr"].decoder
    tokens, D = (64, config.hidden_size) if dry else (1024, config.hidden_size)
    for precision, dtype in PRECISIONS.items():
        bar, make = APART[precision], {"device": device, "dtype": dtype}
        torch.manual_seed(0)
        layer = MixtureOfExperts(config).to(**make)
        for weight in (*layer.experts.parameters(), layer.gate.weight):
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        x = torch.randn(tokens, D, **make, requires_grad=True)
        with torch.no_grad():
            chosen, weight, _ = layer.gate(x)

        def experts(form, x=x, layer=layer, chosen=chosen, weight=weight):
            out = form(layer.experts, x, chosen, weight.to(x.dtype))
            given = (x, layer.experts.gate_up, layer.experts.down)
            return [out, *torch.autograd.grad(out.float().square().mean(), given)]

        apart = worst(experts(mixture_of_experts_grouped), experts(mixture_of_experts))
        yield off(f"experts, grouped, {precision}", apart, bar)
        heads, d = config.num_attention_heads, config.head_dim
        q, k, v = (torch.randn(2, heads, tokens, d, **make, requires_grad=True) for _ in range(3))
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        fused, plain = (
            [o, *_grads(o, (q, k, v))] for o in (attend(q, k, v, None), attention(q, k, v, mask))
        )
        yield off(f"causal attention, fused, {precision}", worst(fused, plain), bar)
        rows = torch.randn(64, D, **make, requires_grad=True)
        head = (torch.randn(config.vocab_size, D, **make) * D**-0.5).requires_grad_()
        target = torch.randint(config.vocab_size, (64,), device=device)
        chunked, whole = (
            [total, *torch.autograd.grad(total, (rows, head))]
            for total in (f(rows, head, target) for f in (chunked_cross_entropy, cross_entropy))
        )
        yield off(f"head and loss, chunked, {precision}", worst(chunked, whole), bar)


def _grads(out: Tensor, given: tuple) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.float().square().mean(), given)


def window_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """A reference sliding window: the mask, chunks, and on a GPU a compiled kernel (flex), padded
    and packed, at two lengths each, with their gradients."""
    config, window = PRESETS["tiny" if dry else "deepseek-ocr"].decoder, 128
    for precision, dtype in PRECISIONS.items():
        for prompt, T in ((70, 400),) if dry else ((300, 1100), (300, 2000)):
            torch.manual_seed(0)
            shape = (2, config.num_attention_heads, T, config.head_dim)
            made = {"device": device, "dtype": dtype, "requires_grad": True}
            given = q, k, v = tuple(torch.randn(shape, **made) for _ in range(3))
            mask = window_mask(torch.tensor([prompt] * 2, device=device), T, window)
            plain = attention(q, k, v, mask)
            exact = [plain, *_grads(plain, given)]
            by_sample = ((p[i : i + 1] for p in given) for i in (0, 1))
            one = torch.cat([attend_window(*own, prompt, window) for own in by_sample])
            what = f"window of {window} in {T} tokens, {precision}"
            apart = worst([one, *_grads(one, given)], exact)
            yield off(f"{what}: chunks", apart, APART[precision])
            if device.type != "cuda":
                continue
            padded = window_blocks((), (prompt,) * 2, T, window, device)
            one = attend_in_blocks(q, k, v, padded)
            apart = worst([one, *_grads(one, given)], exact)
            yield off(f"{what}: flex, padded", apart, APART[precision])
            packed = window_blocks((T, T), (prompt,) * 2, 2 * T, window, device)
            row = (p.transpose(0, 1).flatten(1, 2)[None] for p in given)  # [1, H, 2T, d]
            one = attend_in_blocks(*row, packed)[0].unflatten(1, (2, T)).transpose(0, 1)
            apart = worst([one, *_grads(one, given)], exact)
            yield off(f"{what}: flex, packed", apart, APART[precision])


def varlen(device: torch.device, dry: bool) -> Iterator[dict]:
    """Packed samples: torch's kernel for lengths that vary, beside a call for each sample, which is
    what training does now; with the times of both, forward and backward."""
    if device.type != "cuda":
        yield line("packed attention, varlen", "no kernel on a CPU")
        return
    from torch.nn.attention.varlen import varlen_attn

    config, lengths = PRESETS["deepseek-ocr"].decoder, [393, 350, 400, 310] * 4
    shape = (sum(lengths), config.num_attention_heads, config.head_dim)
    q, k, v = (
        torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    most = max(lengths)

    def one_kernel() -> Tensor:
        return varlen_attn(q, k, v, ends, ends, most, most, window_size=(-1, 0))

    def by_sample() -> Tensor:
        split = ((p.transpose(0, 1)[None]).split(lengths, 2) for p in (q, k, v))
        return torch.cat([attend(*own, None)[0] for own in zip(*split)], 1).transpose(0, 1)

    ours, theirs = ([out, *_grads(out, (q, k, v))] for out in (by_sample(), one_kernel()))
    yield off("packed attention, varlen, bf16", worst(theirs, ours), APART["bf16"])
    for name, form in {"a call for each sample": by_sample, "varlen": one_kernel}.items():
        seconds = []
        for _ in range(10):
            torch.cuda.synchronize()
            began = time.perf_counter()
            _grads(form(), (q, k, v))
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        yield line(f"packed attention, {name}, 16 samples", 1e3 * sorted(seconds)[5], "ms")


def compiled(device: torch.device, dry: bool) -> Iterator[dict]:
    """`--compile` on the golden model. A dry run traces the parts, and writes no kernels."""
    batch = golden_batch("small").packed().to(device)
    for precision in ("bf16",) if dry else PRECISIONS:
        model = DeepseekOCR.from_pretrained(GOLDEN, torch.float32).to(device)

        def step(model=model, precision=precision) -> list[Tensor]:
            model.zero_grad(set_to_none=True)
            with autocast(device, precision):
                total, _ = model.loss(batch)
            total.backward()
            return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

        eager = step()
        if dry:
            for part in list(parts_to_compile(model, precision))[-2:]:
                part.compile(backend="aot_eager")
        else:
            compile_parts(model, precision)
        # Of bf16 the sum of all gradients: a single small one may be rounding and nothing else.
        ours, plain = (torch.cat([g.flatten().float() for g in step_]) for step_ in (step(), eager))
        yield off(f"golden model, --compile, {precision}", distance(ours, plain), APART[precision])


# -- the trainer ----------------------------------------------------------------------------------


def _options(out: Path, device: str, size: int, *more: str) -> list[str]:
    few = f"--batch-size {size} --val-samples 4 --answer-samples 0 --ablation-samples 0"
    steps = f"--max-steps {STEPS} --limit 200 --log-every 1 --save-every 5 --device {device}"
    threads = f"--threads {torch.get_num_threads()}"
    return [*few.split(), *steps.split(), *threads.split(), "--out", str(out), *more]


def _train(out: Path, device: str, size: int, *more: str) -> dict[int, float]:
    """Trains; the loss of each step."""
    code = train.main(_options(out, device, size, *more))
    assert code == 0, f"training ended with {code}"
    return _losses(out)


def _losses(run: Path) -> dict[int, float]:
    entries = lines(run, "train")
    assert len({entry["step"] for entry in entries}) == len(entries), "a step is there twice"
    return {entry["step"]: entry["loss"] for entry in entries}


def _apart(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The largest relative distance of two runs' losses."""
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1)), "steps are missing"
    return max(abs(ours[step] - theirs[step]) / theirs[step] for step in theirs)


def runs(device: torch.device, dry: bool) -> Iterator[dict]:
    """20 steps of tiny-reader beside the CPU's (a dry run: beside the same steps divided), in bf16
    beside float32; then the same run killed in the middle and gone on with."""
    size, name = (2, "cpu") if dry else (8, device.type)
    with TemporaryDirectory() as folder:
        here, killed = Path(folder) / "here", Path(folder) / "killed"
        ours = _train(here, name, size)
        otherwise = ("--batch-size", "1", "--accumulate", "2") if dry else ()
        theirs = _train(Path(folder) / "beside", "cpu", size, *otherwise)
        what = f"tiny-reader, {STEPS} steps"
        yield off(f"{what}: losses beside the CPU's", _apart(ours, theirs), 1e-3)
        narrow = _train(Path(folder) / "bf16", name, size, "--precision", "bf16")
        yield off(f"{what} in bf16: losses beside float32's", _apart(narrow, theirs), 0.05)
        step = _killed(killed, name, size)
        resumed = _train(killed, name, size, "--resume", "auto")
        what = f"killed after step {step} of {STEPS}, resumed"
        yield off(f"{what}: losses beside an undisturbed run's", _apart(resumed, ours), 1e-3)
        a, b = weights(killed), weights(here)
        same = all(a[n].equal(b[n]) for n in b)
        yield line(f"{what}: weights", "equal to the bit" if same else "not equal to the bit")


def _killed(out: Path, device: str, size: int) -> int:
    """Starts the run in a process of its own and kills it once it has a checkpoint; the step that
    it had logged last."""
    command = [sys.executable, "-m", "deepsynth_min.train", *_options(out, device, size)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    process = subprocess.Popen(
        command, stdout=sys.stderr, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}
    )
    with _ended(process):
        while process.poll() is None and not (out / "last").exists():
            time.sleep(0.01)
        assert process.poll() is None, f"the run ended by itself: {process.poll()}"
    return max(_losses(out))


@contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
