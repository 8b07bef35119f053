"""The settings that were asked for: command line and files become `Settings`.

In: a command line, TOML files (config_file.py). Out: `Settings`, complete and checked.

The one idea: precedence. The command line counts first, then --style-json, --config, then with
--resume auto the run's own settings, then the default.
"""

import os
import sys
from dataclasses import fields
from pathlib import Path

from . import config_file, options, style_json
from .errors import UserError
from .settings import CONCERNS, PageSettings, Settings


def make_parser(program: str, description: str) -> options.OneLineParser:
    """The options of all settings, and --config."""
    parser = options.make_parser(CONCERNS, program, description)
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings, e.g. a run's")
    text = "page settings from a config.json of Glyph's, as far as they have a meaning here"
    parser.add_argument("--style-json", metavar="FILE", help=text)
    parser.epilog = options.about_fixed(CONCERNS)
    return parser


def complete(given: dict[str, object]) -> Settings:
    """What was given on a command line -> Settings; others from --config, and with --resume auto
    from the run in --out. --style-json stands below the command line and above the rest; what it
    leaves out is printed. Raises UserError."""
    if path := given.pop("style_json", None):
        styled, left_out = style_json.for_run(path, {f.name for f in fields(PageSettings)})
        for note in left_out:
            print(f"--style-json {path}: left out: {note}")
        given = styled | given
    return options.build(Settings, config_file.layered(given, CONCERNS))


def parse(arguments: list[str] | None = None) -> Settings:
    """Command line -> Settings. Raises UserError; --help prints and exits."""
    parser = make_parser(
        "python -m deepsynth_min.train",
        "Fine-tune DeepSeek-OCR on rendered text. Without arguments: the small model that "
        "comes with the package, on documents new to it. With torchrun: several processes.",
    )
    return complete(vars(parser.parse_args(sys.argv[1:] if arguments is None else arguments)))


def load(path: Path, is_resolved: bool = True) -> Settings:
    """The settings in a TOML file: what they became in its run, or were asked for. UserError."""
    return options.build(Settings, config_file.read(path, CONCERNS, is_resolved))


def load_of_run(directory: Path) -> Settings:
    """The settings that a run wrote into its directory. Raises UserError if it is none."""
    path = directory / "config.toml"
    if not os.path.isfile(path):
        raise UserError(f"{directory}: not a run directory (no config.toml)")
    return load(path)
