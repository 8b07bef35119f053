"""Where in how long a document a run finds a fact (embedded:needles), as heat maps.

In: runs. Out: HTML, "" where no run was scored on needles: the accuracy of each run's answers by
depth and length, at its first evaluation and at its last.
"""

from ..evaluation.needles import by_place
from .charts import heat_map
from .runs import Run


def needles(runs: list[Run]) -> str:
    """The section of the report."""
    maps = []
    for run in runs:
        scored = [line for line in run.lines["eval"] if by_place(line)]
        for line in {line["step"]: line for line in (*scored[:1], *scored[-1:])}.values():
            name = "" if len(runs) == 1 else f"{run.name}, "
            right = f"{line['exact_match']:.1%} of {line['answers']} answers"
            title = f"{name}step {line['step']}: {right}"
            rows = "depth of the fact", "{:.0%}".format
            columns = "length of the document, characters", "{:,}".format
            maps.append(heat_map(title, by_place(line), rows, columns))
    if not maps:
        return ""
    return (
        "<h2>Facts in long documents</h2><p>Share of answers that are right to the letter, by the "
        "place of the fact (0 %: at the beginning) and the length of the document.</p>"
        f'<div class="charts">{"".join(maps)}</div>'
    )
