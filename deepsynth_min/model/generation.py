"""Decoding with a KV cache: pages and a prompt become the tokens of an answer.

In: a `Batch` of prompts, padded to the right. Out: an `Answer` for each: new tokens without EOS.

The one idea: the cache is allocated once, for prompt plus answer of every beam (of a long answer,
for its beginning; it doubles when it is full). The prompts are
turned so that their padding stands to the left; then every row's next token comes out of the last
column, and a step is one token for the whole batch. What a row's answer is depends on no other row:
positions are counted from its own first token, its answer ends where its own context is full, and
chance, where it is asked for, has a stream for each row.

Beam search: Graves 2012, with the length penalty as an exponent. Top-p: Holtzman et al. 2020.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings import GenerationSettings
from .attention import KVCache
from .batch import Batch
from .decoder import Layout
from .deepseek_ocr import DeepseekOCR
from .experts import compute_dtype

FIRST_TOKENS = 512  # of an answer, for which the cache has place at first


@dataclass(frozen=True)
class Answer:
    ids: list[int]  # without EOS
    ended: bool  # with EOS; otherwise --max-new-tokens or the context ended it


def _pad_left(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, T, D] and mask [B, T], padding turned from the right side to the left."""
    T = mask.shape[1]
    shift = T - mask.sum(1, keepdim=True)  # [B, 1]
    source = (torch.arange(T, device=x.device)[None] - shift) % T  # [B, T]
    return x.gather(1, source[..., None].expand_as(x)), mask.gather(1, source)


def token_budget(model: DeepseekOCR, batch: Batch, max_new_tokens: int) -> list[int]:
    """New tokens that each row may have. Raises ValueError if a prompt fills the context."""
    context = model.config.decoder.max_position_embeddings
    lengths = batch.attention_mask.sum(1).tolist()
    if max(lengths) >= context:
        raise ValueError(f"a prompt of {max(lengths)} tokens fills the context of {context}")
    return [min(max_new_tokens, context - length) for length in lengths]


class _Decoding:
    """A batch on its way: the cache, which of its columns are real, and the newest logits."""

    def __init__(self, model: DeepseekOCR, batch: Batch, new_tokens: int, beams: int = 1):
        x, valid = _pad_left(model.embed(batch), batch.attention_mask.bool())
        B, T, _ = x.shape
        new = torch.ones(B, new_tokens, dtype=torch.bool, device=x.device)
        self.model, self.width = model, T
        capacity = T + min(new_tokens, FIRST_TOKENS)
        config, dtype = model.config.decoder, compute_dtype(x)
        self.valid = torch.cat([valid, new], dim=1).repeat_interleave(beams, 0)  # [B*k, T+new]
        self.cache = KVCache(config, B * beams, capacity, dtype, x.device, prompt=T)
        first = self.cache.rows(slice(None, None, beams))  # a prompt is read once, not per beam
        hidden, _ = model.hidden(x, Layout(valid), first)
        self.cache.length = first.length
        self.logits = self._score(hidden).repeat_interleave(beams, 0)  # [B*k, V]
        if beams > 1:
            self.cache.reorder(torch.arange(B, device=x.device).repeat_interleave(beams) * beams)

    def _score(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden[:, -1], self.model.lm_head.weight).float()

    def step(self, token: Tensor) -> None:
        """Appends a token [B*k] to every row and finds the logits of the next."""
        self.width += 1
        x = self.model.model.embed_tokens(token)[:, None]  # [B*k, 1, D]
        layout = Layout(self.valid[:, : self.cache.places(self.width)])
        hidden, _ = self.model.hidden(x, layout, self.cache)
        self.logits = self._score(hidden)


def block_repeats(
    scores: Tensor, history: Tensor, n: int, window: int = 0, allowed: Sequence[int] = ()
) -> Tensor:
    """scores [B, V], -inf where a token would complete n tokens that history [B, t] already has.

    window: look at the last so many tokens of the history alone, 0: at all; allowed: ids that are
    never blocked. As the official servers do it (n-gram 20 to 35, window 90, <td> and </td>).
    """
    history = history[:, -window:] if window else history
    t = history.shape[1]
    if n == 0 or t < n:
        return scores
    runs = history.unfold(1, n, 1)  # [B, t-n+1, n]
    same = (runs[..., :-1] == history[:, None, t - n + 1 :]).all(-1)  # [B, t-n+1]
    found = torch.zeros_like(scores).scatter_add_(1, runs[..., -1], same.to(scores.dtype))
    found[:, list(allowed)] = 0
    return scores.masked_fill(found > 0, -torch.inf)


def _repeats(options: GenerationSettings) -> tuple[int, int]:
    return options.no_repeat_ngram, options.repeat_window


def choose(logits: Tensor, options: GenerationSettings, chance: Tensor | None) -> Tensor:
    """The next token of each row: logits [B, V], chance [B] in [0, 1) -> [B]; None: the likeliest.

    Tokens are ordered by probability; those after the first whose sum reaches top_p are left out,
    and the one at the fraction `chance` of what remains is taken.
    """
    if chance is None:
        return logits.argmax(-1)
    p, order = (logits / options.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept = p.cumsum(-1) - p < options.top_p  # [B, V]
    kept[:, 0] = True
    total = (p * kept).cumsum(-1)
    place = (total <= chance[:, None].to(total.dtype) * total[:, -1:]).sum(-1)
    place = place.minimum(kept.sum(-1) - 1)  # rounding must not step over the last
    return order.gather(1, place[:, None])[:, 0]


def _chance(
    options: GenerationSettings,
    seed: int,
    numbers: Sequence[int] | None,
    device: torch.device | str,
) -> Tensor | None:
    """Fractions [B, max_new_tokens] from (seed, row's number) alone; None for greedy decoding."""
    if not options.temperature:
        return None
    streams = [np.random.RandomState([seed % 2**32, 3, number]) for number in numbers]
    drawn = np.stack([stream.random_sample(options.max_new_tokens) for stream in streams])
    # Rounding to float32 may give 1.0, which `choose` bears.
    return torch.from_numpy(drawn).float().to(device)


@torch.no_grad()
def tokens(
    model: DeepseekOCR,
    batch: Batch,
    options: GenerationSettings,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    stop_at_eos: bool = True,
    allowed: Sequence[int] = (),
) -> Iterator[Tensor]:
    """The next token of every row [B], step after step; a row that has ended gives EOS on and on.

    `numbers` tell the rows' streams of chance apart (default: their places in the batch).
    """
    max_new_tokens = max(token_budget(model, batch, options.max_new_tokens))
    eos = model.config.decoder.eos_token_id
    state = _Decoding(model, batch, max_new_tokens)
    B = len(state.logits)
    chance = _chance(options, seed, range(B) if numbers is None else numbers, state.logits.device)
    history = torch.empty(B, max_new_tokens, dtype=torch.long, device=state.logits.device)
    done = torch.zeros(B, dtype=torch.bool, device=state.logits.device)
    for t in range(max_new_tokens):
        logits = block_repeats(state.logits, history[:, :t], *_repeats(options), allowed)
        token = choose(logits, options, None if chance is None else chance[:, t])
        if stop_at_eos:
            token = token.where(~done, eos)
            done |= token == eos
        history[:, t] = token
        yield token
        # Read back each step: an answer is short, a wait is not.
        if t + 1 == max_new_tokens or (stop_at_eos and done.all()):
            return
        state.step(token)


def generate(
    model: DeepseekOCR,
    batch: Batch,
    options: GenerationSettings,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    allowed: Sequence[int] = (),
) -> list[Answer]:
    """The answer to each prompt of `batch`, as `options` ask; the rows may have unequal lengths.

    allowed: ids that may repeat whatever --no-repeat-ngram says. Raises ValueError if a prompt
    fills the model's context.
    """
    if options.beams > 1:
        return beam_search(model, batch, options, allowed)
    budgets = token_budget(model, batch, options.max_new_tokens)
    eos = model.config.decoder.eos_token_id
    found = tokens(model, batch, options, seed, numbers, allowed=allowed)
    columns = torch.stack(list(found), dim=1).tolist()
    answers = []
    for ids, budget in zip(columns, budgets):
        ids = ids[:budget]
        answers.append(Answer(ids[: ids.index(eos)], True) if eos in ids else Answer(ids, False))
    return answers


def greedy(
    model: DeepseekOCR, batch: Batch, max_new_tokens: int, *, stop_at_eos: bool = True
) -> list[list[int]]:
    """The likeliest next token, `max_new_tokens` times; without EOS, or going on after it."""
    options = GenerationSettings(max_new_tokens=max_new_tokens)
    if stop_at_eos:
        return [answer.ids for answer in generate(model, batch, options)]
    return torch.stack(list(tokens(model, batch, options, stop_at_eos=False)), dim=1).tolist()


# -- beams ----------------------------------------------------------------------------------------


class _Beams:
    """One row's k unfinished beginnings and the best k finished answers; all of it on the host."""

    def __init__(self, first: int, options: GenerationSettings, budget: int, eos: int):
        self.first, self.k, self.penalty, self.budget, self.eos = (
            first,
            options.beams,
            options.length_penalty,
            budget,
            eos,
        )
        self.texts: list[list[int]] = [[] for _ in range(self.k)]
        self.finished: list[tuple[float, Answer]] = []
        self.open = True

    def _finish(self, score: float, answer: Answer) -> None:
        if score > -torch.inf:
            length = len(answer.ids) + answer.ended
            self.finished.append((score / length**self.penalty, answer))
            self.finished = sorted(self.finished, key=lambda f: -f[0])[: self.k]

    def advance(self, scores: list[float], places: list[tuple[int, int]]):
        """Candidates (beam, token), best first -> the k that go on: scores, beams, tokens."""
        going = []
        for rank, (score, (beam, token)) in enumerate(zip(scores, places)):
            if token != self.eos:
                going.append((score, beam, token))
            elif self.open and rank < self.k:
                self._finish(score, Answer(self.texts[beam], True))
        scores, beams, next_tokens = zip(*going[: self.k])
        self.texts = [self.texts[beam] + [token] for beam, token in zip(beams, next_tokens)]
        length = len(self.texts[0])
        if self.open and length == self.budget:
            for score, text in zip(scores, self.texts):
                self._finish(score, Answer(text, False))
            self.open = False
        elif self.open and len(self.finished) == self.k:
            self.open = self.finished[-1][0] < scores[0] / length**self.penalty
        return scores, [self.first + beam for beam in beams], next_tokens


@torch.no_grad()
def beam_search(
    model: DeepseekOCR, batch: Batch, options: GenerationSettings, allowed: Sequence[int] = ()
) -> list[Answer]:
    """The answer of the highest log probability / length ** length_penalty among those found.

    A row ends when it has k finished answers that its best unfinished one is not ahead of.
    """
    k, eos = options.beams, model.config.decoder.eos_token_id
    budgets = token_budget(model, batch, options.max_new_tokens)
    state = _Decoding(model, batch, max(budgets), k)
    device, V = state.logits.device, state.logits.shape[-1]
    rows = [_Beams(b * k, options, budget, eos) for b, budget in enumerate(budgets)]
    scores = torch.full((len(rows), k), -torch.inf, device=device)
    scores[:, 0] = 0  # the k beginnings are still the same one
    while True:
        texts = torch.tensor([text for row in rows for text in row.texts], device=device).long()
        logp = state.logits.log_softmax(-1)  # [B*k, V]
        logp = block_repeats(logp, texts, *_repeats(options), allowed)
        total = scores[..., None] + logp.view(len(rows), k, V)  # [B, k, V]
        best, place = total.flatten(1).topk(2 * k)  # at most k of them are ends
        found = [
            row.advance(values, [divmod(p, V) for p in places])
            for row, values, places in zip(rows, best.tolist(), place.tolist())
        ]
        if not any(row.open for row in rows):
            return [row.finished[0][1] for row in rows]
        values, beams, next_tokens = zip(*found)
        scores = torch.tensor(values, device=device)
        state.cache.reorder(torch.tensor(beams, device=device).flatten())
        state.step(torch.tensor(next_tokens, device=device).flatten())
