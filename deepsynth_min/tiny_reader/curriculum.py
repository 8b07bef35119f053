"""The stages in which `tiny-reader` is taught, and at what rate.

In: a step. Out: its stage, its learning rate.

The one idea: what comes first is what the rest is made of. `letters`: the encoder alone, each
visual token being asked through a linear layer (thrown away afterwards) which letters begin in its
place. `lines`: the decoder learns to write them down, from pages with a few words. `pages` and
`documents`: all of the model, on full pages, then on several. From here on the encoder is frozen:
`longer`, still more pages; `summaries`, of documents of corpus.py, random words still being read
beside them; `names`, more of these, two heads being shown where to look (guide.py); `both`, for a
little while and slowly, as much reading as summarising, for the one had suffered from the other.
"""

from dataclasses import dataclass
from itertools import accumulate

WARMUP = 100  # steps


@dataclass(frozen=True)
class Stage:
    """`steps` steps of `batch` samples, texts of `least` to `most` characters (on as many pages as
    they need) to be read, beside them `documents` documents to be summarised; what trains
    (freeze.TUNED_PARTS); a learning rate on a straight line from `rate` to `last`."""

    name: str
    steps: int
    batch: int
    least: int
    most: int
    tune: str
    rate: float
    last: float
    documents: int = 0
    first: int = 0  # number of the first of them
    distinct: int = 1  # how many there are, used in turn
    guided: float = 0.0  # weight of being shown where to look (guide.py), beside the letters' loss


STAGES = (
    Stage("letters", 5000, 8, 0, 0, "all", 3e-3, 3e-4),  # pages full of words
    Stage("lines", 700, 32, 1, 18, "projector+decoder", 2e-3, 2e-3),
    Stage("pages", 3400, 16, 8, 80, "all", 2e-3, 7e-4),
    Stage("documents", 600, 6, 40, 330, "all", 7e-4, 4e-4),
    Stage("longer", 2200, 6, 8, 420, "projector+decoder", 1.2e-3, 5e-4),
    Stage(
        "summaries", 6000, 1, 8, 420, "projector+decoder", 2e-3, 3e-5, documents=10, distinct=16_384
    ),
    Stage(
        "names",
        9000,
        1,
        8,
        420,
        "projector+decoder",
        1.5e-3,
        3e-5,
        documents=10,
        first=16_384,
        distinct=90_000,
        guided=0.3,
    ),
    Stage(
        "both",
        700,
        6,
        8,
        120,
        "projector+decoder",
        3e-4,
        1e-5,
        documents=5,
        first=106_384,
        distinct=3500,
        guided=0.3,
    ),
)
ENDS = tuple(accumulate(stage.steps for stage in STAGES))
# The step before it begins to summarise.
READS = next(end - stage.steps for stage, end in zip(STAGES, ENDS) if stage.documents)


def place(step: int) -> tuple[Stage, int]:
    """The stage of a step, counted from 0, and the step after its last."""
    return next((stage, end) for stage, end in zip(STAGES, ENDS) if step < end)


def learning_rate(step: int) -> float:
    """Each stage warms up anew, for its optimizer is a new one."""
    stage, end = place(step)
    left = (end - step) / stage.steps
    rise = min(1.0, (step + 1 - (end - stage.steps)) / min(WARMUP, stage.steps))
    return (stage.last + (stage.rate - stage.last) * left) * rise
