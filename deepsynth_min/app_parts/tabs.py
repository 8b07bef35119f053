"""The page: five tabs, each a few of Gradio's components and what they call.

In: what answers (reading.py, jobs.py). Out: Gradio's Blocks, and their server.

The one idea: a control is made from a setting's field, and a button calls one function, whose
UserError is a line on the page.
"""

import functools
import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, fields
from html import escape
from typing import Any, get_origin

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .. import recipes
from ..errors import UserError, one_line
from ..options import choices_of, option_of
from ..reports.page import COLOURS, SHARED
from ..settings import CONCERNS
from .guard import MOST_UPLOAD, Guard
from .jobs import Jobs
from .reading import ANSWER, BEFORE, NEXT, PAGE, Reading, beside, step
from .safety import FIELDS, REFUSED

GROUPS = {t: [f for f in fields(c) if f.name not in REFUSED] for t, c in CONCERNS.items()}
EVERY = 4  # seconds between looks at runs and trainings, while their tab is open; 15 to 20 ms each
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one after the other
LAST = {"trigger_mode": "always_last", "show_progress": "hidden"}  # of many changes
CSS = """
.thumbs { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(256px, 46%), 1fr)); }
.thumbs figure { margin: 0; } .thumbs div { position: relative; }
.thumbs img { width: 100%; margin: 0; border: 1px solid var(--line); }
.thumbs img.map { position: absolute; inset: 0; height: 100%; image-rendering: pixelated;
  mix-blend-mode: multiply; }
figcaption, .facts dt { color: var(--soft); font-size: .85rem; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; } .facts dd { margin: 0; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; } .said mark { background: var(--less); }
.said b { background: var(--c1); color: var(--paper); font-weight: inherit; }
textarea:disabled { font-family: monospace; white-space: pre; overflow: auto; }
iframe { width: 100%; height: 80vh; border: 1px solid var(--line); }
"""
# The report's colours in Gradio's shades of light and dark, with fonts of the system alone.
GREYS = "#fff #e6e9f0 #d5dae3 #d5dae3 #98a2b3 #5d6878 #5d6878 #343b4a #1d2330 #14171f #14171f"
THEME = gr.themes.Base(
    primary_hue=gr.themes.Color(*["var(--c0)"] * 11),
    neutral_hue=gr.themes.Color(*GREYS.split()),
    font=["system-ui", "sans-serif"],
    font_mono=["monospace"],
).set(
    input_border_width="1px",
    input_background_fill="white",
    input_background_fill_dark="*neutral_900",
    button_primary_text_color="var(--paper)",
)


def does(
    event: Callable,
    work: Callable,
    inputs: Sequence = (),
    outputs: Any = None,
    own: dict[str, gr.Component] | None = None,
    **about: Any,
) -> Any:
    """The event calls the work with {setting: text} of its own controls, if it has some, and the
    inputs; the work gives its answer, or one after another."""

    own = own or {}

    def told(*given: Any) -> Iterator[Any]:
        settings = [dict(zip(own, given[len(inputs) :]))] if own else []
        try:
            found = work(*settings, *given[: len(inputs)])
            yield from found if isinstance(found, Iterator) else [found]
        except UserError as error:
            raise gr.Error(escape(one_line(error), quote=False), print_exception=False) from None

    about |= {"api_name": work.__name__, "api_visibility": "private"}
    return event(told, [*inputs, *own.values()], outputs, **about)


def changes(*controls: gr.Component) -> Callable:
    return functools.partial(gr.on, [one.change for one in controls])


def control(f: Field) -> gr.Textbox | gr.Dropdown:
    """Of one setting; empty: as by default."""
    default = ("no", "yes")[f.default] if f.type is bool else str(f.default)
    default = " ".join(f.default) if get_origin(f.type) is tuple else default
    choices = ("yes", "no") if f.type is bool else choices_of(f.type)
    about = {"label": option_of(f.name), "info": f.metadata["help"], "min_width": 240}
    if not choices:
        return gr.Textbox(placeholder=default or "none", max_lines=1, **about)
    named = [(f"as by default ({default})", ""), *((choice, choice) for choice in choices)]
    return gr.Dropdown(named, value="", filterable=False, **about)


def controls(groups: dict[str, list[Field]], opened: str = "") -> dict[str, gr.Component]:
    """{setting: its control}; each group folds."""
    found = {}
    for title, own in groups.items():
        with gr.Accordion(title, open=title == opened), gr.Row():
            found |= {f.name: control(f) for f in own}
    return found


def html(text: str = "") -> gr.HTML:
    return gr.HTML(text, js_on_load=None)


def pages_tab(reading: Reading) -> tuple[list, dict[str, Any]]:
    """Gives what a document is made of: its text and its file, and the settings of its pages."""
    with gr.Row():
        about = {"lines": 8, "max_lines": 20, "scale": 3, "min_width": 300}
        text = gr.Textbox(label="Text", placeholder="Paste a text", **about)
        file = gr.File(label="or a file (text, PDF, image)", height=220)
    own = controls({"Page settings": [FIELDS[name] for name in PAGE]})
    out = [html(), gr.Markdown()]
    does(changes(text, file, *own.values()), reading.pages, [text, file], out, own, **LAST)
    return [text, file], own


def read_tab(reading: Reading, document: list, own: dict[str, Any]) -> None:
    gr.Markdown("The document of the tab Pages, as the model reads it.")
    own = own | controls({"Instruction and generation": [FIELDS[name] for name in ANSWER]})
    with gr.Row():
        button, stop = gr.Button("Read", variant="primary"), gr.Button("Stop reading")
    answer, last, first = html(), gr.State(), gr.State(1)
    with gr.Row():
        back = gr.Button(BEFORE, min_width=120, scale=0)
        token = gr.Slider(1, 2, 1, step=1, label="token of the answer", buttons=[])
        on = gr.Button(NEXT, min_width=120, scale=0)
        heads = gr.Dropdown(reading.heads, label="heads", filterable=False)
    looked, costs = html(), html()
    views = [last, token, answer, looked]
    out = [answer, last, looked, costs]
    reads = does(button.click, reading.read, document, out, own, **MODEL)
    looks = does(reads.success, reading.look, [last, heads, first], views, **MODEL)
    prices = does(looks.success, reading.costs, [last], costs, **MODEL)
    stop.click(None, cancels=[reads, looks, prices])
    does(heads.input, reading.look, [last, heads, token], views, **MODEL)
    does(token.change, step, [last, token], [answer, looked], **LAST)
    for button in (back, on):
        does(button.click, beside, [last, token, button], token, **LAST)


def runs_tab(jobs: Jobs, timer: gr.Timer) -> None:
    about = "those below the folder; choose one, or up to six to see them side by side"
    out = [gr.CheckboxGroup([], label="Runs", info=about), html(), gr.State((0, 0))]
    does(functools.partial(gr.on, [timer.tick, out[0].input]), jobs.runs, out[::2], out, **LAST)


def data_tab(jobs: Jobs) -> None:
    file = gr.File(label="a file of rows, or --data below", height=140)
    own = controls({title: GROUPS[title] for title in ("model", "data", "page")}, "data")
    to = gr.Textbox("pages.parquet", label="write pages as Parquet to")
    with gr.Row():
        check, write = gr.Button("Check", variant="primary"), gr.Button("Write pages")
        stop = gr.Button("Stop")
    out = [gr.Textbox(label="What the command says", lines=6, max_lines=20), html()]
    checks = does(check.click, jobs.check, [file], out, own, concurrency_limit=2)
    writes = does(write.click, jobs.table, [file, to], out, own, concurrency_limit=2)
    stop.click(None, cancels=[checks, writes])


def train_tab(jobs: Jobs, timer: gr.Timer) -> None:
    names = [("none", ""), *((name, name) for name in recipes.names())]
    about = "settings for one purpose; those below come on top of it"
    own = {"recipe": gr.Dropdown(names, value="", label="--recipe", info=about)} | controls(GROUPS)
    command = gr.Markdown(jobs.plan({}))
    with gr.Row():
        start, stop = gr.Button("Start", variant="primary"), gr.Button("Stop (saves)")
        on = gr.Button("Go on")
    state, log = html(), gr.Textbox(label="What it prints", lines=6, max_lines=20)
    out = [seen := gr.State({}), state, log, html(), start, stop, on]
    does(changes(*own.values()), jobs.plan, [], command, own, **LAST)
    starts = does(start.click, jobs.train, own=own)
    for done in (starts, does(stop.click, jobs.stop), does(on.click, jobs.go_on)):
        does(done.success, jobs.training, [seen], out)
    does(timer.tick, jobs.training, [seen], out, **LAST)


def build(reading: Reading, jobs: Jobs) -> gr.Blocks:
    kept = {"analytics_enabled": False, "delete_cache": (600, 3600)}  # what is sent, for an hour
    with gr.Blocks(title="deepsynth_min", **kept) as page:
        about = escape(f"{' '.join(reading.words)}, below {jobs.root}")
        html(f'<h1>deepsynth_min <span class="what">{about}</span></h1>')
        timers = {name: gr.Timer(EVERY, active=False) for name in ("Runs", "Train")}
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Pages"):
                document, own = pages_tab(reading)
            with gr.Tab("Read"):
                read_tab(reading, document, own)
            with gr.Tab("Runs"):
                runs_tab(jobs, timers["Runs"])
            with gr.Tab("Data"):
                data_tab(jobs)
            with gr.Tab("Train"):
                train_tab(jobs, timers["Train"])

        def turn(tab: gr.SelectData) -> list[gr.Timer]:
            return [gr.Timer(active=tab.value == name) for name in timers]

        tabs.select(turn, None, [*timers.values()], api_visibility="private", **LAST)
    return page


def serve(page: gr.Blocks, host: str, port: int, password: str) -> None:
    """Starts the server and comes back."""
    page.queue(api_open=False)
    # Gradio looks for work every millisecond, which takes a tenth of a core.
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = 0.1, 10
    off = ("share", "run_history", "enable_monitoring", "ssr_mode", "mcp_server", "pwa")
    about = dict.fromkeys(off, False) | {"quiet": True, "prevent_thread_lock": True}
    # No other name may be made to point here (DNS rebinding); on all addresses, only to the login.
    names = ["*"] if host in ("0.0.0.0", "::") else [host, "127.0.0.1", "localhost"]
    inner = [Middleware(TrustedHostMiddleware, names), Middleware(Guard)]
    about |= {"app_kwargs": {"middleware": inner}, "footer_links": []}
    about |= {"theme": THEME, "css": SHARED + CSS, "head": f"<style>{COLOURS}</style>"}
    if password:
        about["auth"] = lambda _, word: hmac.compare_digest(word.encode(), password.encode())
    about |= {"max_file_size": MOST_UPLOAD}
    about |= {"state_session_capacity": 200}  # the oldest session's answer gives way
    page.launch(server_name=host, server_port=port, **about)
