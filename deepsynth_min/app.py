"""`python -m deepsynth_min.app`: a page in the browser to try a model, look at runs, and train.

In: a model (tiny-reader by default) and a folder. Out: a local page, until Ctrl-C.

The one idea: every button does what a command does; what is here parses, builds and runs.
"""

import argparse
import html
import json
import os
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_origin

from . import recipes
from .app_parts.jobs import Jobs
from .app_parts.reading import ANSWER, PAGE, Reading
from .app_parts.safety import REFUSED
from .app_parts.server import MOST_UPLOAD, Queue, Server
from .errors import UserError, exit_code
from .options import OneLineParser, choices_of, option_of
from .reports.page import STYLE
from .runs.open_model import add_model_options, open_model
from .settings import CONCERNS
from .training.distributed import stop

LOCAL = "127.0.0.1"


def parser() -> OneLineParser:
    out = OneLineParser(
        "python -m deepsynth_min.app",
        "python -m deepsynth_min.app [--run DIR | --model X --adapter Y] [--root DIR]",
        "Opens a local page to try a model on: pages as it sees them, answers and where it looked, "
        "runs, data, training. Without a model: tiny-reader.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add_model_options(out)
    add = out.add_argument
    add("--root", default=".", metavar="DIR", help="reads and writes below this folder alone")
    add("--port", type=int, default=7860, metavar="N", help="0: any that is free (default: 7860)")
    text = f"address to listen on, with --password (default: {LOCAL}, this machine alone)"
    add("--host", default=LOCAL, metavar="ADDRESS", help=text)
    text = "asked of every browser; 8 characters or more. Without HTTPS it can be overheard"
    add("--password", default="", metavar="TEXT", help=text)
    return out


def default_of(f: Field) -> str:
    if f.type is bool:
        return "yes" if f.default else "no"
    return " ".join(f.default) if get_origin(f.type) is tuple else str(f.default)


def controls() -> list[dict[str, Any]]:
    """Every setting that may be given there, and a recipe for a training, as the page draws it."""
    recipe = {
        "name": "recipe",
        "option": "--recipe",
        "group": "recipe",
        "help": "settings for one purpose; those below come on top of it",
        "choices": recipes.names(),
        "number": False,
        "default": "none",
        "tabs": [],
    }
    return [recipe] + [
        {
            "name": f.name,
            "option": option_of(f.name),
            "group": title,
            "help": f.metadata["help"],
            "choices": ["yes", "no"] if f.type is bool else choices_of(f.type) or [],
            "number": f.type in (int, float),
            "default": default_of(f),
            "tabs": [tab for tab, names in (("page", PAGE), ("answer", ANSWER)) if f.name in names],
        }
        for title, concern in CONCERNS.items()
        for f in fields(concern)
        if f.name not in REFUSED
    ]


def page(reading: Reading, root: Path) -> str:
    """The HTML: the report's colours and what the script must know in their places."""
    facts = {
        "controls": controls(),
        "guided": reading.guided,
        "layers": len(reading.opened.model.model.layers),
        "most": MOST_UPLOAD,
    }
    text = (Path(__file__).parent / "app_parts" / "page.html").read_text("utf-8")
    named = html.escape(f"{' '.join(reading.words)}, below {root}")
    text = text.replace("/*STYLE*/", STYLE).replace("MODEL", named)
    return text.replace("/*FACTS*/", json.dumps(facts).replace("<", "\\u003c"))


def make_server(arguments: list[str]) -> Server:
    """Raises UserError."""
    if not any(word.split("=")[0] in ("--run", "--run-dir", "--model") for word in arguments):
        arguments = ["--model", "tiny-reader", *arguments]
    given = parser().parse_args(arguments)
    if given.host not in (LOCAL, "localhost") and len(given.password) < 8:
        raise UserError(f"--host {given.host}: needs --password with 8 characters or more")
    if not 0 <= given.port < 65536:
        raise UserError(f"--port: {given.port} is not in 0..65535")
    root = Path(given.root).resolve()
    if not root.is_dir():
        raise UserError(f"--root {given.root}: not a folder")
    opened = open_model(given, {})
    words = [f"--run={given.run}"] if given.run else [f"--model={given.model}"]
    words += [f"--adapter={given.adapter}"] if given.adapter else []
    os.chdir(root)  # names in the page are relative to it
    reading, jobs, queue = Reading(opened, root, words), Jobs(root), Queue()
    answers = {
        "pages": reading.pages,
        "read": lambda *asked: queue.served(reading.read(*asked)),
        "look": lambda *asked: queue.served(reading.look(*asked)),
        "costs": lambda *asked: queue.served(reading.costs(*asked)),
        **{name: getattr(jobs, name) for name in ("runs", "report", "check", "table", "plan")},
        **{name: getattr(jobs, name) for name in ("train", "training", "stop")},
    }
    try:
        return Server(given.host, given.port, given.password, page(reading, root), answers)
    except OSError as error:
        raise UserError(f"--port {given.port}: {error.strerror} (--port 0: any)") from None


def run(arguments: list[str]) -> None:
    with make_server(arguments) as server:
        print(f"http://{server.host}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever(poll_interval=3600)  # Ctrl-C interrupts it; else it sleeps


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
