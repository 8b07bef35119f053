"""The stages in which `tiny-reader` is trained, and the learning rate of each step.

In: a step. Out: its stage, its learning rate.

The one idea: what comes first is what the rest is made of. `letters`: the encoder alone, each
visual token predicting, through a linear layer that is thrown away afterwards, which letters begin
on it. `lines`: the decoder learns to write them down, from pages with a few words. `pages` and
`documents`: all of the model, on full pages, then on several. From here on the encoder is frozen:
`longer`, still more pages; `summaries`, of documents like the embedded corpus', random words still
being read beside them; `names`, more of these, the attention of two heads being guided (guide.py);
`both`, for a little while and slowly, as much reading as summarising, for the one had suffered from
the other.
"""

from dataclasses import dataclass
from itertools import accumulate

WARMUP = 100  # steps


@dataclass(frozen=True)
class Stage:
    """`steps` optimizer steps. Each takes `batch` samples whose texts of min_chars to max_chars
    characters (on as many pages as they need) are to be read, and beside them `documents` documents
    to be summarised."""

    name: str
    steps: int
    batch: int
    min_chars: int
    max_chars: int
    tune: str  # what trains: a key of freeze.TUNED_PARTS
    first_rate: float  # learning rate, from here
    last_rate: float  # on a straight line to here
    documents: int = 0
    first_document: int = 0  # its number
    distinct: int = 1  # documents, used in turn
    guide_weight: float = 0.0  # of the guided heads' loss (guide.py), beside that of the answers

    def as_stored(self) -> dict[str, object]:
        """The stage under the names by which checkpoints have known its fields from the start."""
        return {
            "name": self.name,
            "steps": self.steps,
            "batch": self.batch,
            "least": self.min_chars,
            "most": self.max_chars,
            "tune": self.tune,
            "rate": self.first_rate,
            "last": self.last_rate,
            "documents": self.documents,
            "first": self.first_document,
            "distinct": self.distinct,
            "guided": self.guide_weight,
        }


DECODER = "projector+decoder"
STAGES = (  # the columns are Stage's fields; `letters` has pages full of words
    Stage("letters", 5000, 8, 0, 0, "all", 3e-3, 3e-4),
    Stage("lines", 700, 32, 1, 18, DECODER, 2e-3, 2e-3),
    Stage("pages", 3400, 16, 8, 80, "all", 2e-3, 7e-4),
    Stage("documents", 600, 6, 40, 330, "all", 7e-4, 4e-4),
    Stage("longer", 2200, 6, 8, 420, DECODER, 1.2e-3, 5e-4),
    Stage("summaries", 6000, 1, 8, 420, DECODER, 2e-3, 3e-5, 10, 0, 16_384),
    Stage("names", 9000, 1, 8, 420, DECODER, 1.5e-3, 3e-5, 10, 16_384, 90_000, 0.3),
    Stage("both", 700, 6, 8, 120, DECODER, 3e-4, 1e-5, 5, 106_384, 3500, 0.3),
)
ENDS = tuple(accumulate(stage.steps for stage in STAGES))
# The step before it begins to summarise.
READS = next(end - stage.steps for stage, end in zip(STAGES, ENDS) if stage.documents)


def stage_at(step: int) -> tuple[Stage, int]:
    """The stage of a step, counted from 0, and the step after its last."""
    return next((stage, end) for stage, end in zip(STAGES, ENDS) if step < end)


def learning_rate(step: int) -> float:
    """Of a step, counted from 0. Each stage warms up anew, for its optimizer is a new one."""
    stage, end = stage_at(step)
    left = (end - step) / stage.steps
    warmup = min(1.0, (step + 1 - (end - stage.steps)) / min(WARMUP, stage.steps))
    return (stage.last_rate + (stage.first_rate - stage.last_rate) * left) * warmup
