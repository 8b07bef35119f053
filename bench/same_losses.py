"""Do two commits train alike? Losses and weights of the miniature models, to the bit.

    python bench/same_losses.py HEAD~1        # the files as they lie here against that commit

In: a commit. Out: a table, one row for each model and --tune: by how much losses and weights are
apart. Each side is its own tree and its own process, trains by its own command line on rows that
this file writes, one thread, float32. Exit code 1 if anything is apart or does not train any more,
unless NUMBERS_CHANGED.md beside this file differs between the two: a commit that means to change
numbers says there which and why.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import environment, finish, table
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SAYS_SO = "bench/NUMBERS_CHANGED.md"
CASES = [
    ("tiny", "decoder"),
    ("tiny", "lora"),
    ("tiny-unlimited", "lora"),
    ("tiny-2", "all"),
    ("tiny-2", "qlora"),
]
OPTIONS = (
    "--max-steps 3 --batch-size 2 --accumulate 2 --val-samples 2 --answer-samples 0 "
    "--ablation-samples 0 --save-every 0 --log-every 1 --threads 1 --device cpu --precision fp32"
).split()
# Run by the tree's own interpreter: one import for all cases; refused cases do not end it.
SIDE = """
import sys
from deepsynth_min import train
rows, out, *cases = sys.argv[1:]
options = cases[cases.index("--"):][1:]
for case in cases[:cases.index("--")]:
    model, tune = case.split("/")
    given = ["--model", model, "--tune", tune, "--data", rows, "--out", f"{out}/{model}-{tune}"]
    train.main(given + options)
"""


def rows() -> str:
    """Twelve documents of one to three pages, as JSON lines."""
    made = []
    for number in range(12):
        words = [f"word{(number * 7 + i * 13) % 97}" for i in range(40 + 110 * (number % 3))]
        made.append({"text": " ".join(words), "summary": " ".join(words[: 3 + number])})
    return "".join(json.dumps(row) + "\n" for row in made)


def git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)


def tree_of(commit: str, folder: Path) -> Path:
    """The commit's files in a folder, with the compiled part: ours if its source is the same."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", commit], capture_output=True, check=True
    ).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    built = sorted((ROOT / "deepsynth_min").glob("_raster*.so"))
    if built and not git("diff", "--quiet", commit, "--", "csrc", "setup.py").returncode:
        shutil.copy(built[0], folder / "deepsynth_min")
    else:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def train(tree: Path, cases: list[tuple], data: Path, out: Path) -> subprocess.CompletedProcess:
    """Trains the cases with a tree's code; what it says goes to out.log."""
    given = ["/".join(case) for case in cases]
    command = [sys.executable, "-c", SIDE, str(data), str(out), *given, "--", *OPTIONS]
    variables = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)
    out.with_suffix(".log").write_text(done.stdout + done.stderr)
    return done


def losses(run: Path) -> list[tuple] | None:
    """(kind, step, loss) of a run that came to its end; None of one that did not."""
    if not (run / "last").is_file():
        return None
    lines = map(json.loads, (run / "metrics.jsonl").open(encoding="utf-8"))
    return [(line["kind"], line["step"], line["loss"]) for line in lines if "loss" in line]


def weights(run: Path) -> dict:
    """Name -> tensor, of everything that the last checkpoint holds."""
    checkpoint = run / "checkpoints" / (run / "last").read_text().strip()
    found = {}
    for file in sorted(checkpoint.rglob("*.safetensors")):
        found |= {f"{file.name}: {name}": t for name, t in load_file(file).items()}
    return found


def compared(before: Path, now: Path) -> dict:
    """How far two runs are apart: {"loss", "weights"} as largest differences, or {"says"}."""
    ours, theirs = losses(now), losses(before)
    if ours is None or theirs is None:
        here, there = ("trains" if found is not None else "does not" for found in (ours, theirs))
        return {"says": f"here it {here}, at the commit it {there}", "fails": ours is None}
    if [line[:2] for line in ours] != [line[:2] for line in theirs]:
        return {"says": "other steps are logged or evaluated", "fails": True}
    loss = max(abs(a[2] - b[2]) for a, b in zip(ours, theirs))
    first, second = weights(now), weights(before)
    if first.keys() != second.keys():
        names = sorted(first.keys() ^ second.keys())
        return {"loss": loss, "says": f"other tensors are kept, {names[0]}", "fails": True}
    apart = max(float((first[n].double() - second[n].double()).abs().max()) for n in first)
    return {"loss": loss, "weights": apart, "fails": bool(loss or apart)}


def words(found: dict) -> tuple[str, str]:
    if "says" in found:
        return found["says"], ""
    return tuple(f"{found[k]:.1e} apart" if found[k] else "equal" for k in ("loss", "weights"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", help="what to compare with, e.g. HEAD~1")
    parser.add_argument(
        "--only", nargs="+", metavar="MODEL/TUNE", help="these cases, e.g. tiny/lora"
    )
    given = parser.parse_args()
    cases = [tuple(case.split("/")) for case in given.only or []] or CASES
    found = git("rev-parse", "--verify", "--short", f"{given.commit}^{{commit}}")
    if found.returncode:
        print(f"error: {given.commit}: no commit of this checkout", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        data.write_text(rows(), "utf-8")
        trees = {"before": tree_of(given.commit, folder / "tree"), "now": ROOT}
        for side, tree in trees.items():
            if train(tree, cases, data, folder / side).returncode and not (folder / side).is_dir():
                print((folder / f"{side}.log").read_text()[-2000:], file=sys.stderr)
                print(f"error: the code {side} does not run", file=sys.stderr)
                return 1
        result = {
            f"{model} {tune}": compared(*(folder / s / f"{model}-{tune}" for s in trees))
            for model, tune in cases
        }
    said = bool(git("diff", "--quiet", given.commit, "--", SAYS_SO).returncode)
    print(table([(case, *words(f)) for case, f in result.items()], ("", "losses", "weights")))
    changed = any(f["fails"] for f in result.values())
    if changed:
        print(f"{SAYS_SO} says why" if said else f"error: numbers changed; say why in {SAYS_SO}")
    finish(
        {"bench": "same_losses", "against": found.stdout.strip(), **result, **environment("torch")}
    )
    return int(changed and not said)


if __name__ == "__main__":
    sys.exit(main())
