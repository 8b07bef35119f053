"""`python -m deepsynth_min.app`: a page in the browser to try a model, look at runs, and train.

In: a model (tiny-reader by default) and a folder. Out: a local page, until Ctrl-C.

The one idea: every button does what a command does; what is here parses and starts the server.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from .errors import UserError, exit_code
from .options import OneLineParser
from .runs.open_model import add_model_options, open_model
from .training.distributed import stop

LOCAL = "127.0.0.1"


def parser() -> OneLineParser:
    out = OneLineParser(
        "python -m deepsynth_min.app",
        "python -m deepsynth_min.app [--run DIR | --model X --adapter Y] [--root DIR]",
        "Opens a local page to try a model on: pages as it sees them, answers and where it looked, "
        "runs, data, training. Without a model: tiny-reader. Needs the extra `app` (Gradio).",
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


def run(arguments: list[str]) -> None:
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
    try:
        with socket.create_server((given.host, given.port)) as link:
            port = link.getsockname()[1]  # of --port 0 the one that was free
    except OSError as error:
        raise UserError(f"--port {given.port}: {error.strerror} (--port 0: any)") from None
    with tempfile.TemporaryDirectory(prefix="deepsynth-app-") as folder:  # of what is sent
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        try:
            from .app_parts.tabs import Jobs, Reading, build, serve
        except ModuleNotFoundError as error:
            text = f"the page needs {error.name}: pip install 'deepsynth-min[app]'"
            raise UserError(text) from None
        opened = open_model(given, {})
        words = [f"--run={given.run}"] if given.run else [f"--model={given.model}"]
        words += [f"--adapter={given.adapter}"] if given.adapter else []
        os.chdir(root)  # names in the page are relative to it
        page = build(Reading(opened, root, words), Jobs(root))
        serve(page, given.host, port, given.password)
        print(f"http://{given.host}:{port}/  (Ctrl-C ends it)", flush=True)
        signal.pause()


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
