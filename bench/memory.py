"""Memory and file sizes of the ways to train: decoder, all-but-sam, lora, qlora; peak of loading.

    python bench/memory.py                                # preset tiny, steps really run
    python bench/memory.py --preset deepseek-ocr --count  # sizes alone, from shapes: any machine
    python bench/memory.py --preset deepseek-ocr --mode base --precision bf16       # on a GPU
    python bench/memory.py --load --layers 2              # loading at full width, cut short

Each row is a process of its own. Weights, gradients and optimizer state are the bytes of the
tensors that are held; `peak` is what the device gave at most (CUDA: allocated; CPU: resident size
above that before the model was made) in three steps of the trainer's. With --count nothing is run:
shapes come from the meta device, a packed weight's bytes from packing blocks of the same size.
--load writes a bf16 checkpoint, and loads it as it is (the peer) and packed.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import child, environment, finish, resident, table
from train_step import random_batch

from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.model import PRESETS, DeepseekOCR, ModelConfig
from deepsynth_min.model.weights import official_views
from deepsynth_min.pages.modes import page_side
from deepsynth_min.training.build import build_base
from deepsynth_min.training.checkpoint import save_model
from deepsynth_min.training.distributed import start
from deepsynth_min.training.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.training.precision import autocast, set_parameter_types
from deepsynth_min.tuning import LoraConfig, attach, freeze
from deepsynth_min.tuning.lora import adapter_views
from deepsynth_min.tuning.quant import Packed, QuantConfig, quantise
from deepsynth_min.tuning.targets import choose

TUNES = ("decoder", "all-but-sam", "lora", "qlora")


def config_of(options) -> ModelConfig:
    config = PRESETS[options.preset]
    if options.layers:  # full width, few layers, and a small encoder and vocabulary
        decoder = replace(
            PRESETS["deepseek-ocr"].decoder, num_hidden_layers=options.layers, vocab_size=8192
        )
        config = replace(PRESETS["tiny"], decoder=decoder)
    return config


def packed_bytes(numbers: int, width: int, config: QuantConfig) -> int:
    """Bytes of a packed weight, by proportion from one of whole blocks that is really packed."""
    sample = Packed(torch.randn(64, 256), config)
    if config.kind == "int8":
        return numbers + 4 * numbers // width
    fixed = 4 if config.double else 0  # the mean of absmax
    return fixed + (sample.stored_bytes() - fixed) * numbers // sample.shape.numel()


def adapt(model: DeepseekOCR, options) -> None:
    config = LoraConfig(options.rank, 2.0 * options.rank)
    attach(model, config, choose(model, (options.targets,)))


def counted(options, tune: str) -> dict:
    """Sizes from shapes alone; float32 for what trains, --precision for what is frozen."""
    with torch.device("meta"):
        model = DeepseekOCR(config_of(options))
        packed = 0
        if tune == "qlora":
            quantise(model, QuantConfig())
        if "lora" in tune:
            adapt(model, options)
    freeze.freeze(model, tune)
    weights = trained = 0
    frozen = 2 if options.precision == "bf16" else 4
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if hasattr(owner, "receive"):
            packed += packed_bytes(parameter.numel(), parameter.shape[-1], owner.config)
        elif parameter.requires_grad:
            trained += parameter.numel()
        else:
            weights += parameter.numel() * frozen
    return {
        "weights": weights + packed + 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "trainable": trained,
        "file": file_bytes(model, tune),
        "peak": None,
    }


def file_bytes(model: DeepseekOCR, tune: str) -> int:
    """What is handed on: the adapter in float32, or the whole model in bf16."""
    if "lora" not in tune:
        return 2 * sum(view.numel() for view in official_views(model).values())
    return 4 * sum(view.numel() for view in adapter_views(model).values())


def measured(options, tune: str) -> dict:
    """Sizes of the tensors that three steps leave, and the peak."""
    world = start(options.device, options.threads)
    cuda = world.device.type == "cuda"
    before = 0 if cuda else resident("VmRSS")
    torch.manual_seed(0)
    with torch.device(world.device):
        model = DeepseekOCR(config_of(options))
    if tune == "qlora":
        quantise(model, QuantConfig())
    if "lora" in tune:
        adapt(model, options)
    freeze.freeze(model, tune)
    set_parameter_types(model, options.precision)
    optimizer, scaler = make_adamw(model, (0.9, 0.95), 0.01), LossScaler(False, world.device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    side = page_side(options.mode, model.config.page_format)
    for _ in range(3):
        batch = random_batch(model.config, side, options.batch_size, 100).to(world.device)
        with autocast(world.device, options.precision):
            total, count = model.loss(batch)
        (total / count).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = sum(p.grad.nbytes for p in trained)
        clip_and_step(optimizer, scaler, 1e-4, 1.0)
        optimizer.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - before
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values())
    held = [*model.parameters(), *model.buffers()]
    return {
        "weights": sum(t.nbytes for t in held),
        "gradients": gradients,
        "optimizer": state,
        "trainable": sum(p.numel() for p in trained),
        "file": file_bytes(model, tune),
        "peak": peak,
    }


def loaded(options, storage: str) -> dict:
    """Peak and rest of loading a checkpoint in a storage type: resident size above that before."""
    if storage != "bf16":
        Packed(torch.randn(64, 64), QuantConfig(storage))  # the library's memory is not counted
    before, began = resident("VmRSS"), time.perf_counter()
    packed = None if storage == "bf16" else QuantConfig(storage)
    model = build_base(Path(options.directory), torch.device("cpu"), torch.bfloat16, packed)
    held = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    return {
        "peak": resident("VmHWM") - before,
        "rest": held,
        "seconds": round(time.perf_counter() - began, 1),
    }


def mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f}"


def report_training(options) -> None:
    rows = {tune: child(tune) for tune in TUNES}
    method = "counted from shapes" if options.count else "held and measured in three steps"
    print(
        f"{options.preset}, {options.precision}, LoRA {options.targets} at rank {options.rank}, "
        f"batch {options.batch_size}, {method}; MB = 10^6 bytes"
    )
    columns = ("weights", "gradients", "optimizer")
    lines = [
        (
            tune,
            f"{row['trainable']:,}",
            *(mb(row[c]) for c in columns),
            mb(sum(row[c] for c in columns)),
            mb(row["peak"]),
            mb(row["file"]),
        )
        for tune, row in rows.items()
    ]
    header = (
        "--tune",
        "trainable",
        "weights MB",
        "gradients MB",
        "optimizer MB",
        "sum MB",
        "peak MB",
        "file MB",
    )
    print(table(lines, header))
    finish({"bench": "memory", **vars(options), "rows": rows, **environment("torch")})


def report_loading(options) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        directory.mkdir()
        model = DeepseekOCR(config_of(options)).bfloat16()
        save_model(model, directory, EMBEDDED)
        del model
        size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        words = ("--directory", str(directory))
        rows = {storage: child(storage, *words) for storage in ("bf16", "nf4")}
    print(f"loading a bf16 checkpoint of {mb(size)} MB on the CPU; MB = 10^6 bytes")
    lines = [
        (name, mb(row["peak"]), f"{row['peak'] / size:.2f}", mb(row["rest"]), f"{row['seconds']} s")
        for name, row in rows.items()
    ]
    print(table(lines, ("as", "peak MB", "peak / file", "held after MB", "time")))
    finish(
        {
            "bench": "memory --load",
            **vars(options),
            "checkpoint_bytes": size,
            "rows": rows,
            **environment("torch", "bitsandbytes"),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny")
    add("--layers", type=int, default=0, help="decoder layers at full width instead of a preset")
    add("--mode", default="auto", help="page size, as in training")
    add("--precision", choices=("fp32", "bf16"), default="bf16")
    add("--batch-size", type=int, default=8)
    add("--targets", default="attention+mlp")
    add("--rank", type=int, default=16)
    add("--count", action="store_true", help="sizes from shapes; nothing is run")
    add("--load", action="store_true", help="the peak while loading instead")
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    add("--row", help=argparse.SUPPRESS)
    add("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row and options.load:
        print(json.dumps(loaded(options, options.row)))
    elif options.row:
        print(json.dumps((counted if options.count else measured)(options, options.row)))
    elif options.load:
        report_loading(options)
    else:
        report_training(options)


if __name__ == "__main__":
    main()
