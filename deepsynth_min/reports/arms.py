"""Runs that differ in what stands in the pages' place (--page-as), side by side.

In: runs. Out: a table and two charts of HTML, "" where all runs have pages: held-out loss and
ROUGE-L over the tokens that a document takes.

The one idea: what is compared costs something, so each run stands where its cost is. One that is
further to the left and not higher (loss) or lower (ROUGE-L) is the better use of the context.
"""

import html

from .charts import chart
from .runs import Run
from .tables import table

TOKENS = "tokens before the answer, mean over held-out rows"


def arms(runs: list[Run]) -> str:
    """The section of the report."""
    shown = [run for run in runs if "prompt_tokens" in run.last]
    if {_kind(run) for run in shown} <= {"rendered"}:
        return ""
    rows = [
        [
            html.escape(f"{_kind(run)} ({run.name})"),
            f"{run.last['prompt_tokens']:.1f}",
            *(f"{run.last[name]:.4f}" if name in run.last else "" for name in ("loss", "rougeL")),
        ]
        for run in shown
    ]

    def points(name: str) -> list[tuple[str, str, list[tuple[float, float]]]]:
        return [
            (run.css, f"{_kind(run)} ({run.name})", [(run.last["prompt_tokens"], run.last[name])])
            for run in shown
            if name in run.last
        ]

    charts = (
        chart("Loss, nats per token, over the tokens spent", points("loss"), TOKENS),
        chart("ROUGE-L over the tokens spent", points("rougeL"), TOKENS),
    )
    heads = ["in the pages' place", TOKENS, "loss, nats per token", "ROUGE-L"]
    return (
        "<h2>What a page is worth</h2><p>The last evaluation of each run.</p>"
        f'{table(heads, rows, number=True)}<div class="charts">{"".join(charts)}</div>'
    )


def _kind(run: Run) -> str:
    return run.settings.get("page", {}).get("page_as", "rendered")
