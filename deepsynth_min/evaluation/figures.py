"""The figures of an evaluation: what each means, how it is made of single answers, what is said.

In: numbers of each answer. Out: one flat dictionary of figures, and lines for people.

The one idea: a mean over a few answers says little without its spread, so `cer` and `rougeL` come
with the 95 % bootstrap interval of their mean over the answers that were scored.
"""

from collections.abc import Sequence
from statistics import mean, median

from .text_metrics import bootstrap_interval, rate

DEFINITIONS = {
    "loss": "nats per answer token over all held-out rows",
    "perplexity": "exp of the loss",
    "tokens": "answer tokens that the loss is a mean over",
    "samples": "held-out rows that the loss is a mean over",
    "reads/blank": "rise of the loss, in nats per token, with an empty page in the page's place",
    "reads/shuffled": "the same with another document's page",
    "reads/without": "the same without a page",
    "reads/text": "the same with as much plain text as the page has visual tokens",
    "reads/unseen_style": "the same with the page in a style of --unseen-style, over all rows that "
    "fit in both styles; lower is better",
    "compression": "text tokens per visual token, over all held-out rows with a text",
    "characters_per_token": "characters of text per visual token, over the same rows",
    "prompt_tokens": "tokens before the answer, mean over held-out rows",
    "pages": "pages of all held-out rows",
    "ablated": "held-out rows that the page was changed of",
    "rouge1": "ROUGE-1: F1 of the words in common, mean over answers",
    "rouge2": "ROUGE-2: F1 of the pairs of words in common, mean over answers",
    "rougeL": "ROUGE-L: F1 of the longest common subsequence of words, mean over answers",
    "cer": "character error rate: characters to change in an answer per one of its reference, "
    "mean over answers",
    "cer_median": "median over answers of the same",
    "cer_corpus": "characters to change in all answers per one of all references",
    "cer_normalised": "cer with case, punctuation and white space left out",
    "wer": "word error rate: words to change in an answer per one of its reference, mean over "
    "answers",
    "wer_corpus": "words to change in all answers per one of all references",
    "precision": "share of an answer's different words that stand in its reference, as the Fox "
    "benchmark counts them, mean over answers",
    "exact_match": "share of answers that equal the reference",
    "eos_rate": "share of answers that ended by themselves",
    "repetition": "share of runs of 4 tokens that came before in the same answer, mean over "
    "answers",
    "answers": "held-out rows that an answer was generated for and scored",
}
HIGHER_IS_BETTER = ("reads/", "rouge", "precision", "exact_match", "eos_rate")
WITH_INTERVAL = ("rougeL", "cer")  # NAME_low and NAME_high are given too
COUNTS = ("edits", "characters", "word_edits", "words")  # of an answer; they are added up


def answer_figures(columns: dict[str, Sequence[float]]) -> dict[str, float]:
    """Figures from the numbers of each answer: COUNTS, and what a mean is taken of, `cer` among
    them. All columns are as long as there are answers, one or more."""
    result = {name: mean(values) for name, values in columns.items() if name not in COUNTS}
    edits, characters, word_edits, words = (sum(columns[name]) for name in COUNTS)
    result["cer_corpus"], result["wer_corpus"] = rate(edits, characters), rate(word_edits, words)
    result["cer_median"], result["answers"] = median(columns["cer"]), len(columns["cer"])
    if result["answers"] > 1:
        for name in WITH_INTERVAL:
            if name in columns:
                low, high = bootstrap_interval(columns[name])
                result |= {f"{name}_low": low, f"{name}_high": high}
    return result


def cost(result: dict[str, float], metric: str) -> float:
    """The figure by which checkpoints are compared, turned so that lower is better."""
    return -result[metric] if metric.startswith(HIGHER_IS_BETTER) else result[metric]


def describe(result: dict[str, float]) -> str:
    """The figures that are worth a line while training."""
    parts = [f"held-out loss {result['loss']:.4f} (perplexity {result['perplexity']:.2f})"]
    for name in ("reads/shuffled", "reads/blank"):
        if name in result:
            parts.append(f"{name} {result[name]:+.4f}")
    if "answers" in result:
        if "rougeL" in result:
            parts.append(f"ROUGE-L {result['rougeL']:.3f}{_spread(result, 'rougeL')}")
        count = f"{result['answers']} answer{'s' * (result['answers'] != 1)}"
        parts.append(f"CER {result['cer']:.3f}{_spread(result, 'cer', count)}")
        parts.append(f"ended {result['eos_rate']:.0%}")
    return ", ".join(parts)


def _spread(result: dict[str, float], name: str, more: str = "") -> str:
    """The interval of a figure and something more, in brackets; "" if there is neither."""
    low, high = result.get(f"{name}_low"), result.get(f"{name}_high")
    interval = "" if low is None else f"{low:.2f}-{high:.2f}"
    said = ", ".join(filter(None, (interval, more)))
    return f" ({said})" if said else ""


def best_beside_last(best: dict[str, float], last: dict[str, float], metric: str) -> str:
    """Which checkpoint is the best one by the metric of --best, and how to name it to a command; ""
    if it is the last. best, last: evaluations with their `step`, of checkpoints that are there."""
    if best["step"] == last["step"] or metric not in best:
        return ""
    name = "" if metric == "loss" else f"{metric} "
    beside = f" ({last[metric]:.4f} at step {last['step']})" if metric in last and name else ""
    where = f"checkpoints/step-{best['step']:06}"
    return (
        f"best {name}{best[metric]:.4f} at step {best['step']}{beside}: {where} (--checkpoint best)"
    )
