"""The reference sliding window: what is trained, scored and generated is the same attention."""

from dataclasses import replace

import pytest
import torch
from small_model import SMALL
from small_steps import assert_equal, build, step

from deepsynth_min.model import attention as attention_module
from deepsynth_min.model.attention import attend_window, attention, window_mask
from deepsynth_min.model.batch import Batch, visual_tokens
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.generation import _Decoding, generate
from deepsynth_min.settings import GenerationSettings

VISUAL = visual_tokens(128, 128)


def windowed(window: int):
    return replace(SMALL, decoder=replace(SMALL.decoder, sliding_window=window))


def answered(*samples: tuple[int, int]) -> Batch:
    """Padded samples of (tokens of prompt, of answer), each with a page in its prompt."""
    torch.manual_seed(1)
    B, T = len(samples), max(map(sum, samples))
    ids = torch.randint(5, SMALL.decoder.vocab_size, (B, T))
    real, image = torch.zeros(2, B, T, dtype=torch.bool)
    labels = torch.full((B, T), -100)
    image[:, 1 : 1 + VISUAL] = True
    for b, (prompt, answer) in enumerate(samples):
        real[b, : prompt + answer] = True
        labels[b, prompt : prompt + answer] = ids[b, prompt : prompt + answer]
    pages = torch.randint(0, 256, (B, 1, 128, 128), dtype=torch.uint8)
    return Batch(ids, real, image, labels, pages, owners=tuple(range(B)))


def prompts_of(batch: Batch) -> Batch:
    """The same samples without their answers."""
    T = max(batch.prompts)
    real = torch.arange(T)[None] < torch.tensor(batch.prompts)[:, None]
    text = (batch.input_ids[:, :T], real, batch.image_mask[:, :T])
    return Batch(*text, torch.full((len(real), T), -100), batch.pages, owners=batch.owners)


@pytest.mark.parametrize("window", [1, 4, 128])
@pytest.mark.parametrize("length", [9, 60, 700])
def test_attention_in_chunks_is_attention_by_the_mask(window, length, monkeypatch):
    monkeypatch.setattr(attention_module, "CHUNK", 16)
    torch.manual_seed(0)
    q = torch.randn(1, 4, length, 8, requires_grad=True)
    k, v = torch.randn(2, 1, 2, length, 8, requires_grad=True).unbind()
    mask, weight = window_mask(torch.tensor([7]), length, window), torch.randn(1, 4, length, 8)
    keys, values = (t.repeat_interleave(2, 1) for t in (k, v))
    plain = attention(q, keys, values, mask)
    fast = attend_window(q, k, v, 7, window, enable_gqa=True)
    assert torch.allclose(fast, plain, atol=1e-5)
    wanted = torch.autograd.grad((plain * weight).sum(), (q, k, v))
    for found, want in zip(torch.autograd.grad((fast * weight).sum(), (q, k, v)), wanted):
        assert torch.allclose(found, want, atol=1e-5)


def test_a_chunk_sees_no_more_than_prompt_and_window(monkeypatch):
    calls = []
    monkeypatch.setattr(
        attention_module, "attend", lambda q, k, *rest: (calls.append(k.shape[2]), q)[1]
    )
    x = torch.zeros(1, 1, 100 + 128 + 3 * 512, 8)
    attend_window(x, x, x, 100, 128)
    assert calls == [228, *[100 + 127 + 512] * 3]


@torch.no_grad()
def decoded_one_by_one(model: DeepseekOCR, batch: Batch) -> list[torch.Tensor]:
    """Logits [answer, V] that predict each token of each answer, as generation finds them."""
    ends = batch.attention_mask.sum(1).tolist()
    longest = max(end - prompt for end, prompt in zip(ends, batch.prompts))
    state, found = _Decoding(model, prompts_of(batch), longest), []
    for t in range(longest):
        found.append(state.logits)
        places = [min(p + t, batch.input_ids.shape[1] - 1) for p in batch.prompts]
        state.step(batch.input_ids[torch.arange(len(places)), torch.tensor(places)])
    rows = torch.stack(found, 1)
    return [row[: e - p] for row, e, p in zip(rows, ends, batch.prompts)]


def scored(logits: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Of logits [B, T, V] or packed [1, T, V] those that predict each answer."""
    answers = [e - p for e, p in zip(batch.packed().lengths, batch.prompts)]
    return list(logits.flatten(0, 1)[batch.score_index].split(answers))


CASES = [(1, (3, 40)), (4, (3, 40)), (8, (8, 9, 10)), (128, (20, 300))]


@pytest.mark.parametrize("window, answers", CASES)
@torch.no_grad()
def test_each_answer_position_has_the_logits_of_generation(window, answers):
    model = build(windowed(window), "decoder").eval()
    batch = answered(*((VISUAL + 3 + 2 * i, n) for i, n in enumerate(answers)))
    packed = batch.packed()
    wanted = decoded_one_by_one(model, batch)
    for name, found in (
        ("padded", scored(model(batch), batch)),
        ("packed", scored(model(packed), packed)),
    ):
        for ours, theirs in zip(found, wanted):
            assert torch.allclose(ours, theirs, atol=2e-5), name
    without = build(SMALL, "decoder").eval()
    differ = [
        not torch.allclose(a, b, atol=1e-3) for a, b in zip(scored(without(batch), batch), wanted)
    ]
    # The window is there, and only where it ends; nothing is predicted from the last token.
    assert differ == [n - 1 > window for n in answers]


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("tune", ["decoder", "all", "lora"])
def test_gradients_are_those_of_a_dense_mask(tune, recompute, monkeypatch):
    monkeypatch.setattr(attention_module, "CHUNK", 16)
    model = build(windowed(4), tune).eval()
    batch = answered((VISUAL + 3, 3), (VISUAL + 9, 70), (VISUAL + 2, 25))
    model.recompute = recompute

    def by_dense_mask():
        model.zero_grad()
        logits = model(batch).flatten(0, 1)[batch.score_index]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        (loss / batch.num_scored).backward()
        return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    wanted = by_dense_mask()
    for form in (batch, batch.packed()):
        assert_equal(step(model, form, balance=0.0), wanted)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_an_answer_of_any_length_takes_the_same_memory(beams):
    model = build(windowed(8), "decoder").eval()
    batch = prompts_of(answered((VISUAL + 3, 5), (VISUAL + 9, 5)))
    state = _Decoding(model, batch, 400, beams)
    before = state.cache.store.shape
    assert before[4] == batch.input_ids.shape[1] + 8
    for _ in range(100):
        state.step(torch.full((2 * beams,), 7))
    assert state.cache.store.shape == before and state.cache.length == before[4] - 8 + 100


@torch.no_grad()
def test_beams_and_greedy_answers_are_the_likeliest_by_the_dense_mask():
    model, V = build(windowed(4), "decoder").eval(), SMALL.decoder.vocab_size
    batch = prompts_of(answered((VISUAL + 3, 5)))
    (greedy,) = generate(model, batch, GenerationSettings(max_new_tokens=30))
    text = torch.cat([batch.input_ids, torch.tensor([greedy.ids])], 1)
    T, P = text.shape[1], batch.input_ids.shape[1]
    labels = torch.where(torch.arange(T) < P, -100, text)
    image = torch.nn.functional.pad(batch.image_mask, (0, T - P))
    whole = Batch(text, torch.ones(1, T, dtype=torch.bool), image, labels, batch.pages)
    logits = model(whole)[0, P - 1 : -1]
    assert logits.shape == (30, V) and logits.argmax(-1).tolist() == greedy.ids

    def likelihood(ids: list[int]) -> float:
        other = replace(whole, input_ids=text.clone(), image_index=None)
        other.input_ids[0, P:] = torch.tensor(ids)
        logp = model(other)[0, P - 1 : -1].log_softmax(-1)
        return float(logp.gather(1, torch.tensor(ids)[:, None]).sum())

    options = GenerationSettings(max_new_tokens=30, beams=4)
    (best,) = generate(model, batch, options)
    assert len(best.ids) < 30 or likelihood(best.ids) >= likelihood(greedy.ids) - 1e-4


@pytest.mark.parametrize("window, answers", CASES[1:])  # its cache cannot hold a window of 1
@torch.no_grad()
def test_each_answer_position_has_the_released_class_s_cached_logits(window, answers):
    peers = pytest.importorskip("peers", reason="transformers is not installed")
    model = build(windowed(window), "decoder").eval()
    peer, image_token = peers.whole_peer(model).eval(), 4
    peer.model.config.image_token_id = image_token
    for i, n in enumerate(answers):
        batch = answered((VISUAL + 3 + 2 * i, n))
        ids = batch.input_ids.masked_fill(batch.image_mask, image_token)
        P, found, cache = batch.prompts[0], [], None
        piece = {"input_ids": ids[:, :P], "pixel_values": peers.normalised(batch.pages)}
        for t in range(n):
            out = peer(**piece, past_key_values=cache, use_cache=True)
            found.append(out.logits[0, -1])
            cache = out.past_key_values
            piece = {"input_ids": ids[:, P + t : P + t + 1]}
        packed = batch.packed()
        assert torch.allclose(scored(model(packed), packed)[0], torch.stack(found), atol=2e-4)
