"""Every bench that suits this machine, one after another, and the table for bench/README.md.

    python bench/run_all.py                          # CPU: reduced sizes, and the table says so
    python bench/run_all.py --baseline-dir DIR       # on a GPU, the official model too
    python bench/run_all.py --only decoder --quick   # the smallest sizes: does it run?

Each bench is a process of its own; the last line that it prints is what is read. Rows come from
those alone. A bench that fails is a row that says so, and the exit code is then 1.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import environment, finish, processor, versions

HERE = Path(__file__).parent
OFFICIAL = ("--preset", "deepseek-ocr", "--mode", "base", "--precision", "bf16")
STEP = "train_step.py"


def on_cpu(quick: bool) -> list[tuple[str, ...]]:
    few = ("--repeats", "1") if quick else ()
    small = (*few, "--preset", "tiny") if quick else ()
    layers = small if quick else ("--repeats", "7")
    loss = ("--batch-size", "2", "--tokens", "64", "--vocabulary", "4096") if quick else ()
    sizes = ("--batch-size", "2") if quick else ()
    return [
        ("decoder.py", *layers, *sizes),
        ("decoder.py", "--tune", "lora", *layers, "--batch-size", "2"),
        ("encoder.py", *small),
        ("loss_memory.py", *loss),
        ("loss_memory.py", "--frozen", *loss),
        *((STEP, "--tune", tune, *few, *sizes) for tune in ("decoder", "lora", "qlora")),
        (STEP, "--tune", "lora", "--cached", *few, *sizes),
        ("profile_step.py", "--tune", "lora", *sizes),
    ]


def on_gpu(baseline: str) -> list[tuple[str, ...]]:
    sixteen, eight = (*OFFICIAL, "--batch-size", "16"), (*OFFICIAL, "--batch-size", "8")
    low_memory = ("--weights", "bf16", "--optimizer", "adamw8bit", "--checkpoint-layers", "12")
    peers = [("official.py", "--baseline-dir", baseline, "--tune", t) for t in ("lora", "decoder")]
    return [
        *((STEP, "--tune", tune, *sixteen) for tune in ("lora", "decoder", "qlora")),
        (STEP, "--tune", "lora", "--cached", *sixteen),
        *((STEP, "--tune", tune, *eight) for tune in ("lora", "qlora")),
        (STEP, "--tune", "qlora", *OFFICIAL, "--batch-size", "1"),
        (STEP, "--tune", "decoder", *low_memory, *eight),
        *(
            (
                "decoder.py",
                "--preset",
                "deepseek-ocr",
                "--precision",
                "bf16",
                "--tune",
                tune,
                "--batch-size",
                "16",
            )
            for tune in ("decoder", "lora")
        ),
        ("encoder.py", "--precision", "bf16", "--pages", "16", "--flex"),
        ("loss_memory.py",),
        ("loss_memory.py", "--frozen"),
        ("profile_step.py", "--tune", "lora", *sixteen),
        *(peers if baseline else ()),
    ]


def shown(result: dict) -> list[tuple[str, str]]:
    """(what was measured, its value) for one bench's JSON line."""
    bench = result["bench"]
    if bench == "decoder":
        return [
            (
                f"decoder {result['preset']}, tune {result['tune']}, B {r['batch']}, "
                f"T {result['tokens']}, {r['scored']} scored, {result['precision']}",
                f"{r['ratio']:.2f} x transformers at its best; "
                f"{r['over_floor']['deepsynth_min']:.2f} x the floor",
            )
            for r in result["results"]
        ]
    if bench == "encoder":
        return [
            (
                f"encoder {result['preset']}, {result['pages']} page(s), {result['precision']}",
                f"{result['ratio']:.2f} x transformers; peak memory "
                f"{result['memory_of_official']:.2f} of the official formulation's",
            )
        ]
    if bench == "loss_memory":
        sizes = f"B {result['batch_size']}, T {result['tokens']}, V {result['vocabulary']}"
        frozen = ", head frozen" if result["frozen"] else ""
        return [
            (f"head and loss, {sizes}{frozen}", f"{result['share']:.1%} of the naive peak memory")
        ]
    if bench == "train_step":
        memory = f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"
        cached = ", cached" if result["cached"] else ""
        return [
            (
                f"step {result['preset']}, tune {result['tune']}{cached}, "
                f"batch {result['batch_size']}, {result['precision']}, {result['optimizer']}",
                f"{result['samples_per_s']:.2f} samples/s; utilisation "
                f"{result['utilisation']:.0%}; {memory}",
            )
        ]
    if bench == "official":
        return [
            (
                f"official code, tune {result['tune']}, batch {result['batch_size']}",
                f"ours {result['ratio']:.2f} x its samples/s",
            )
        ]
    first = result["operations"][0]
    return [
        (
            "most expensive kernel of a step",
            f"{first['name']}, {first['us'] / 1e3:.1f} ms; host waits {result['host_waits']}",
        )
    ]


def run(command: tuple[str, ...]) -> dict | None:
    """The last line of a bench; None if it failed."""
    print("$ python bench/" + " ".join(command), flush=True)
    done = subprocess.run(
        [sys.executable, HERE / command[0], *command[1:]], capture_output=True, text=True
    )
    print(done.stdout if done.returncode == 0 else done.stdout + done.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline-dir", default="")
    parser.add_argument("--only", default="", help="benches whose command contains this")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, one repeat")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    cuda = torch.cuda.is_available()
    commands = on_gpu(given.baseline_dir) if cuda else on_cpu(given.quick)
    threads = ("--threads", str(given.threads)) if given.threads else ()
    chosen = [c for c in commands if given.only in " ".join(c)]
    results = [(c, run((*c, *(threads if c[0] != "official.py" else ())))) for c in chosen]
    hardware = torch.cuda.get_device_name() if cuda else f"{processor()} (CPU: reduced sizes)"
    found = ", ".join(f"{k} {v}" for k, v in versions("torch", "transformers", "peft").items())
    print(f"{hardware}; {found}\n\n| measured | |\n|---|---|")
    for command, result in results:
        rows = shown(result) if result else [("bench/" + " ".join(command), "failed")]
        print("\n".join(f"| {what} | {value} |" for what, value in rows))
    print()
    finish(
        {
            "bench": "run_all",
            "results": [result for _, result in results],
            **environment("torch", "transformers", "peft"),
        }
    )
    return 0 if all(result for _, result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
