"""Decoding with the cache, in batches and with beams, against slow decoding that has neither."""

import math

import pytest
import torch
from golden import CASES, GOLDEN, golden_batch

from deepsynth_min.errors import UserError
from deepsynth_min.model import generation
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.generation import beam_search, block_repeats, choose, generate, tokens
from deepsynth_min.settings import GenerationSettings

EOS = 1


@pytest.fixture(scope="module")
def model() -> DeepseekOCR:
    """The golden weights: every tensor random."""
    return DeepseekOCR.from_pretrained(GOLDEN).eval().requires_grad_(False)


def prompt(case: str, row: int, text: int, answer=()) -> Batch:
    """BOS, pages, `text` tokens of golden sample `row`, then `answer`."""
    whole = golden_batch(case, slice(row, row + 1))
    length = 1 + int(whole.image_mask.sum()) + text
    ids = torch.cat([whole.input_ids[:, :length], torch.tensor([list(answer)]).long()], dim=1)
    images = torch.zeros_like(ids, dtype=torch.bool)
    images[:, :length] = whole.image_mask[:, :length]
    return Batch(
        ids,
        torch.ones_like(images),
        images,
        torch.full_like(ids, -100),
        whole.pages,
        whole.tiles,
        whole.grids,
    )


def together(*prompts: Batch) -> Batch:
    """One batch, padded to the right."""
    T = max(p.input_ids.shape[1] for p in prompts)
    names = {"input_ids": 2, "attention_mask": 0, "image_mask": 0, "labels": -100}
    padded = {
        name: torch.cat(
            [
                torch.nn.functional.pad(getattr(p, name), (0, T - len(p.input_ids[0])), value=value)
                for p in prompts
            ]
        )
        for name, value in names.items()
    }
    optional = {
        name: None
        if getattr(prompts[0], name) is None
        else torch.cat([getattr(p, name) for p in prompts])
        for name in ("tiles", "grids")
    }
    return Batch(**padded, pages=torch.cat([p.pages for p in prompts]), **optional)


@torch.no_grad()
def next_logits(model, case, row, text, answer) -> torch.Tensor:
    """[V], the whole sequence decoded again: no cache, no padding."""
    return model(prompt(case, row, text, answer))[0, -1]


def slow_greedy(model, case, row, text, most) -> list[int]:
    answer = []
    while len(answer) < most:
        token = int(next_logits(model, case, row, text, answer).argmax())
        if token == EOS:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("case", CASES)
def test_cached_equals_uncached_token_for_token_and_a_batch_equals_one_by_one(model, case):
    rows = [(0, 5), (1, 2), (0, 1)]
    options = GenerationSettings(max_new_tokens=16)
    expected = [slow_greedy(model, case, row, text, 16) for row, text in rows]
    batch = together(*(prompt(case, row, text) for row, text in rows))
    assert [answer.ids for answer in generate(model, batch, options)] == expected
    for (row, text), answer in zip(rows, expected):
        assert generate(model, prompt(case, row, text), options)[0].ids == answer


def test_an_answer_ends_at_eos_while_others_go_on(model):
    """The token that the slow reference finds fourth is made the end, for one row of two."""
    first = slow_greedy(model, "base", 0, 5, 8)
    ending = DeepseekOCR.from_pretrained(GOLDEN).eval()
    with torch.no_grad():  # the rows of EOS and of that token change places, in and out
        swapped = torch.arange(ending.lm_head.weight.shape[0])
        swapped[[EOS, first[3]]] = torch.tensor([first[3], EOS])
        ending.lm_head.weight.copy_(ending.lm_head.weight[swapped])
        ending.model.embed_tokens.weight.copy_(ending.model.embed_tokens.weight[swapped])
    rows = [(0, 5), (1, 3)]
    batch = together(*(prompt("base", row, text) for row, text in rows))
    answers = generate(ending, batch, GenerationSettings(max_new_tokens=8))
    assert [a.ids for a in answers] == [slow_greedy(ending, "base", *r, 8) for r in rows]
    assert answers[0].ended and len(answers[0].ids) <= 3
    assert len(answers[1].ids) > len(answers[0].ids)


def test_an_answer_ends_where_its_own_context_is_full(model):
    short, long = prompt("small", 0, 1), prompt("small", 0, 6)
    full = long.input_ids.shape[1] + 3
    model.config.decoder.__dict__["max_position_embeddings"], whole = (
        full,
        model.config.decoder.max_position_embeddings,
    )
    try:
        for options in (
            GenerationSettings(max_new_tokens=50),
            GenerationSettings(max_new_tokens=50, beams=2),
        ):
            answers = generate(model, together(short, long), options)
            alone = [generate(model, p, options)[0] for p in (short, long)]
            assert answers == alone and [len(a.ids) for a in answers] == [8, 3]
        with pytest.raises(ValueError, match="fills the context"):
            generate(model, prompt("small", 0, 6, [5, 5, 5]), options)
    finally:
        model.config.decoder.__dict__["max_position_embeddings"] = whole


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_n_tokens_occur_twice_and_only_repeats_are_blocked(n):
    torch.manual_seed(n)
    history = torch.randint(0, 4, (6, 12))
    scores = torch.randn(6, 5)
    blocked = block_repeats(scores, history, n)
    for row, seen in enumerate(history.tolist()):
        runs = {tuple(seen[i : i + n]) for i in range(len(seen) - n + 1)}
        for token in range(5):
            repeats = tuple(seen[len(seen) - n + 1 :]) + (token,) in runs
            assert blocked[row, token] == (-torch.inf if repeats else scores[row, token])
    assert block_repeats(scores, history[:, : n - 1], n).equal(scores)


def test_repeats_are_looked_for_in_a_window_and_some_tokens_may_always_repeat():
    history = torch.tensor([[1, 2, 3, 9, 9, 1, 2], [4, 4, 4, 4, 4, 4, 4]])
    scores = torch.zeros(2, 12)

    def blocked(*options) -> list[list[int]]:
        found = block_repeats(scores, history, 3, *options)
        return [row.isinf().nonzero().flatten().tolist() for row in found]

    assert blocked() == [[3], [4]]
    assert blocked(6) == [[], [4]]  # 1 2 3 began seven tokens ago
    assert blocked(7) == [[3], [4]]
    assert blocked(0, [3]) == [[], [4]]
    assert blocked(4, [3, 4]) == [[], []]


def test_a_cache_that_is_full_grows_and_changes_no_answer(model, monkeypatch):
    batch = together(prompt("base", 0, 5), prompt("base", 1, 3))
    for options in (GenerationSettings(max_new_tokens=40), GenerationSettings(40, beams=3)):
        whole = generate(model, batch, options)
        monkeypatch.setattr(generation, "FIRST_TOKENS", 1)
        assert generate(model, batch, options) == whole
        monkeypatch.undo()


def test_generation_honours_n_gram_blocking(model):
    batch = together(prompt("base", 0, 5), prompt("base", 1, 2))
    free = generate(model, batch, GenerationSettings(max_new_tokens=40))
    for options in (
        GenerationSettings(max_new_tokens=40, no_repeat_ngram=1),
        GenerationSettings(max_new_tokens=12, no_repeat_ngram=1, beams=3),
    ):
        for answer in generate(model, batch, options):
            assert len(set(answer.ids)) == len(answer.ids)
    assert any(len(set(answer.ids)) < len(answer.ids) for answer in free)


# -- beams ----------------------------------------------------------------------------------------


def slow_beams(model, case, row, text, options) -> list[int]:
    """Beam search on lists, every beginning decoded anew."""
    beams, finished = [(0.0, [])], []
    for length in range(1, options.max_new_tokens + 1):
        found = []
        for score, ids in beams:
            logp = next_logits(model, case, row, text, ids).log_softmax(-1)
            found += [(score + float(p), [*ids, token]) for token, p in enumerate(logp)]
        found = sorted(found, key=lambda f: -f[0])[: 2 * options.beams]
        ends = [f for f in found[: options.beams] if f[1][-1] == EOS]
        finished += [(s / length**options.length_penalty, ids[:-1]) for s, ids in ends]
        finished = sorted(finished, key=lambda f: -f[0])[: options.beams]
        beams = [f for f in found if f[1][-1] != EOS][: options.beams]
        if len(finished) == options.beams and (
            finished[-1][0] >= beams[0][0] / length**options.length_penalty
        ):
            return finished[0][1]
    finished += [(score / length**options.length_penalty, ids) for score, ids in beams]
    return max(finished)[1]


@pytest.fixture(scope="module")
def ending_model() -> DeepseekOCR:
    """Golden weights whose head makes EOS likely enough to end some answers early."""
    model = DeepseekOCR.from_pretrained(GOLDEN).eval().requires_grad_(False)
    model.lm_head.weight[EOS] = model.lm_head.weight[2:42].mean(0) * 14
    return model


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beam_search_equals_the_slow_one_in_a_batch_and_alone(ending_model, penalty):
    options = GenerationSettings(max_new_tokens=6, beams=3, length_penalty=penalty)
    rows = [(0, 5), (1, 2), (0, 1)]
    expected = [slow_beams(ending_model, "small", *row, options) for row in rows]
    batch = together(*(prompt("small", *row) for row in rows))
    assert [a.ids for a in beam_search(ending_model, batch, options)] == expected
    for row, ids in zip(rows, expected):
        assert beam_search(ending_model, prompt("small", *row), options)[0].ids == ids
    lengths = {len(ids) for ids in expected}
    assert len(lengths) > 1  # some ended early


def test_a_beam_for_every_token_finds_the_best_of_all_answers(ending_model):
    V = ending_model.config.decoder.vocab_size
    options = GenerationSettings(max_new_tokens=2, beams=V, length_penalty=1.0)
    first = next_logits(ending_model, "small", 0, 3, []).log_softmax(-1)
    starts = [prompt("small", 0, 3, [token]) for token in range(V)]
    with torch.no_grad():
        second = torch.cat(
            [
                ending_model(together(*starts[i : i + 80]))[:, -1].log_softmax(-1)
                for i in range(0, V, 80)
            ]
        )  # [V, V]
    pairs = (first[:, None] + second) / 2
    pairs[EOS] = -math.inf
    best = pairs.argmax()
    expected = [int(best // V)] + [int(best % V)] * (int(best % V) != EOS)
    if first[EOS] > pairs.max():
        expected = []
    assert beam_search(ending_model, prompt("small", 0, 3), options)[0].ids == expected


# -- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.8), (1.5, 0.3)])
def test_sampled_tokens_have_the_probabilities_of_the_truncated_softmax(temperature, top_p):
    torch.manual_seed(0)
    logits = torch.randn(12) * 2
    p = (logits.double() / temperature).softmax(-1)
    order, kept, total = p.argsort(descending=True).tolist(), [], 0.0
    for token in order:  # the smallest set that reaches top_p
        kept.append(token)
        total += float(p[token])
        if total >= top_p:
            break
    N = 20_000
    chance = (torch.arange(N) + 0.5) / N  # evenly spread, so that frequencies are exact to 1/N
    options = GenerationSettings(temperature=temperature, top_p=top_p)
    drawn = choose(logits.expand(N, -1), options, chance).bincount(minlength=12) / N
    expected = torch.zeros(12).double()
    expected[kept] = p[kept] / p[kept].sum()
    assert (drawn - expected).abs().max() < 3 / N


def test_a_chance_that_rounds_to_one_takes_the_last_token_that_is_kept():
    options = GenerationSettings(temperature=1.0, top_p=0.5)
    logits = torch.tensor([[3.0, 3.0, 0.0, 0.0]])
    assert choose(logits, options, torch.tensor([1.0])).item() in (0, 1)


def test_sampling_is_seeded_for_each_row_whatever_else_is_in_the_batch(model):
    options = GenerationSettings(max_new_tokens=10, temperature=1.0, top_p=0.95)
    rows = [prompt("base", 0, 5), prompt("base", 1, 2), prompt("base", 0, 1)]
    whole = generate(model, together(*rows), options, seed=7, numbers=[10, 11, 12])
    alone = [generate(model, p, options, seed=7, numbers=[10 + i])[0] for i, p in enumerate(rows)]
    assert whole == alone
    assert generate(model, together(*rows), options, seed=8, numbers=[10, 11, 12]) != whole


def test_streamed_tokens_are_those_of_the_answer(model):
    options = GenerationSettings(max_new_tokens=10)
    streamed = [int(token) for token in tokens(model, prompt("base", 0, 5), options)]
    assert streamed == generate(model, prompt("base", 0, 5), options)[0].ids


def test_beams_that_sample_are_a_users_mistake():
    with pytest.raises(UserError, match="--beams"):
        GenerationSettings(beams=2, temperature=0.5)
