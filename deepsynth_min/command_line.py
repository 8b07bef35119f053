"""The settings that were asked for: command line and files become `Settings`.

In: a command line, TOML files (config_file.py). Out: `Settings`, complete and checked.

The one idea: precedence. The command line counts first, then --style-json, --config, --recipe, then
with --resume auto the run's own settings, then the default.
"""

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from . import config_file, options, recipes, style_json
from .errors import UserError
from .settings import CONCERNS, PageSettings, Settings


@dataclass(frozen=True)
class DryRun:
    """What --dry-run is asked: no settings, for no run is made."""

    gpu: str = ""  # a name in planning/roofline.py
    gpus: int = 1
    gpu_price: float = 0.0  # of one for an hour, in whatever money


def make_parser(program: str, description: str) -> options.OneLineParser:
    """The options of all settings, --recipe, --config and --style-json."""
    parser = options.make_parser(CONCERNS, program, description)
    text = "settings of a recipe that comes with the package; list: says which there are; stands "
    text += "below --config and --style-json, as these stand below the command line"
    parser.add_argument("--recipe", metavar="NAME", help=text)
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings, e.g. a run's")
    text = "page settings from a config.json of Glyph's, as far as they have a meaning here"
    parser.add_argument("--style-json", metavar="FILE", help=text)
    parser.epilog = options.about_fixed(CONCERNS)
    return parser


def complete(given: dict[str, object]) -> Settings:
    """What was given on a command line -> Settings; others from --config, --recipe, and with
    --resume auto from the run in --out. --style-json stands below the command line and above the
    rest; what it leaves out is printed. `--recipe list` prints and exits. Raises UserError."""
    if given.get("recipe") == "list":
        print(recipes.listing())
        raise SystemExit(0)
    if path := given.pop("style_json", None):
        styled, left_out = style_json.for_run(path, {f.name for f in fields(PageSettings)})
        for note in left_out:
            print(f"--style-json {path}: left out: {note}")
        given = styled | given
    return options.build(Settings, config_file.layered(given, CONCERNS))


def parse(arguments: list[str] | None = None) -> Settings:
    """Command line -> Settings. Raises UserError; --help prints and exits."""
    return parse_training(arguments)[0]


def parse_training(arguments: list[str] | None = None) -> tuple[Settings, DryRun | None]:
    """Command line -> (Settings, what --dry-run is asked or None). As `parse`."""
    parser = make_parser(
        "python -m deepsynth_min.train",
        "Fine-tune DeepSeek-OCR on rendered text. Without arguments: the small model that "
        "comes with the package, on documents new to it. With torchrun: several processes. Set "
        "first: --model, --data, --mode, --tune, --precision, --batch-size, --epochs, --lr, --out "
        "and --resume; what is left out has a default that fits the model.",
    )
    _add_dry_run(parser)
    given = vars(parser.parse_args(sys.argv[1:] if arguments is None else arguments))
    asked = {f.name: given.pop(f.name) for f in fields(DryRun) if f.name in given}
    if not given.pop("dry_run", False):
        if asked:
            raise UserError(f"{options.option_of(next(iter(asked)))}: goes with --dry-run")
        return complete(given), None
    return complete(given), DryRun(**asked)


def _add_dry_run(parser: options.OneLineParser) -> None:
    add = parser.add_argument_group("dry run, before a GPU is rented").add_argument
    text = "say what the run would take (rows, steps, memory, with --gpu time) and write nothing"
    add("--dry-run", action="store_true", help=text)
    add("--gpu", metavar="NAME", help="of which GPU: h100, h200, a100, l4, t4, rtx4090")
    add("--gpus", metavar="N", type=int, help="how many of them, a process each (default: 1)")
    text = "of one of them for an hour, in any currency: the cost is said too"
    add("--gpu-price", metavar="X", type=float, help=text)


def load(path: Path, is_resolved: bool = True) -> Settings:
    """The settings in a TOML file: what they became in its run, or were asked for. UserError."""
    return options.build(Settings, config_file.read(path, CONCERNS, is_resolved))


def load_of_run(directory: Path) -> Settings:
    """The settings that a run wrote into its directory. Raises UserError if it is none."""
    path = directory / "config.toml"
    if not os.path.isfile(path):
        raise UserError(f"{directory}: not a run directory (no config.toml)")
    return load(path)
