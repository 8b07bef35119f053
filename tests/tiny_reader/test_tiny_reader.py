"""The recipe that trains a model to read, and the model that came of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deepsynth_min.corpus.documents import documents
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.tokenizer import letter_tokenizer, load_tokenizer, tokenizer_files
from deepsynth_min.evaluation.text_metrics import character_error_rate
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.loss import IGNORE
from deepsynth_min.model.shape import presets
from deepsynth_min.model.shape.official import config_from_file
from deepsynth_min.model.shape.presets import SHIPPED, TINY_READER, TINY_READER_CONFIG
from deepsynth_min.options import change
from deepsynth_min.pages.renderer import render_pages
from deepsynth_min.settings import Settings
from deepsynth_min.tiny_reader.curriculum import ENDS, READS, STAGES, learning_rate, stage_at
from deepsynth_min.tiny_reader.guide import copied
from deepsynth_min.tiny_reader.random_text import SLOTS, UNSEEN, Letters, Words, document
from deepsynth_min.tiny_reader.reading import (
    READ,
    Reading,
    answers,
    nearest,
    statements,
    summary_row,
)
from deepsynth_min.tiny_reader.recipe import Training
from deepsynth_min.training import checkpoint

ROOT = Path(__file__).parents[2]
PROVENANCE = json.loads((SHIPPED / "provenance.json").read_text())
with open(ROOT / "bench" / "tiny_reader_curve.jsonl", encoding="utf-8") as lines:
    CURVE = [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def words():
    return Words(0)


@pytest.fixture(scope="module")
def builder():
    settings = change(Settings(), instruction=READ)
    return SampleBuilder(settings, TINY_READER_CONFIG, load_tokenizer(SHIPPED))


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path / "t", 0, 1)


def at(training: Training, stage: int) -> Training:
    training.step = ENDS[stage] - STAGES[stage].steps
    training._begin_stage()
    return training


# -- what it learns from


def test_no_unseen_text_is_ever_trained_on_however_short(words):
    trained = {words.text(n, 1, 6) for n in range(20_000)}
    unseen = [words.text(UNSEEN + n, 1, 6) for n in range(500)]
    assert len(trained) > 5_000 and trained.isdisjoint(unseen)


def test_a_text_depends_on_seed_and_number_alone(words):
    first = [words.text(n, 1, 120) for n in range(50)]
    assert [Words(0).text(n, 1, 120) for n in reversed(range(50))] == first[::-1]
    assert Words(1).text(7, 1, 120) != first[7]


def test_every_character_is_drawn_and_is_one_token(words, builder):
    texts = [words.text(n, 1, 330) for n in range(300)]
    texts += [part for d in documents("train")[:200] for part in (d.text, d.summary)]
    for text in texts:
        sample = builder(Row("a text", text, text))
        assert not sample.missing and (sample.pages < 128).any()
        assert len(sample.ids) == sample.prompt + len(text) + 1, ascii(text)


@pytest.mark.slow
def test_no_document_shares_an_entity_combination_with_a_held_out_one():
    held_out = {pair for d in documents("val") for pair in d.combinations()}
    assert [document(n).text for n in (0, 2399)] == [documents("train")[n].text for n in (0, 2399)]
    later = [document(n) for n in range(2400, 5000)]
    assert len({d.text for d in later}) == len(later)
    assert all(held_out.isdisjoint(d.combinations()) for d in later)


def joined(line: str, more: str) -> int:
    """Where in `line` stands what `more` begins with: the one goes on with the other."""
    return next(k for k in range(len(line) + 1) if more.startswith(line[k:]))


def test_a_visual_token_is_asked_for_the_letters_that_begin_in_its_place(words, builder):
    """By other means: each line put together again, and drawn up to the first letter of a place."""
    letters, style = Letters(words, builder), builder.style
    for n in range(3):
        page, labels = letters.page(n)
        for number, places in enumerate(labels.tolist()):
            said = [
                builder.tokenizer.decode([i for i in ids if i not in (IGNORE, 1)]) for ids in places
            ]
            line = ""
            for column, shown in enumerate(filter(None, said)):
                start = joined(line, shown)
                line = line[:start] + shown
                before = (render_pages(line[:start].rstrip(), style).pages[0] < 255).any(0)
                assert len(shown) <= SLOTS and not before[64 * column + 14 :].any(), line
                first = (render_pages(line[: start + 1], style).pages[0] < 255).any(0)
                around = first[max(0, 64 * column - 8) : 64 * column + 40]
                assert line[start] == " " or around.any(), line
            drawn = render_pages(line, style).pages[0][:64]
            assert np.array_equal(drawn, page[0, 64 * number : 64 * number + 64]), line


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(n, marks=pytest.mark.slow) if stage.first_document else n
        for n, stage in enumerate(STAGES)
        if n
    ],
)
def test_a_step_s_pages_show_what_is_to_be_read_or_summarised(training, stage):
    at(training, stage).step += 1
    (batch, targets), pages = training._data(training.step), 0
    places = torch.arange(batch.labels.shape[1]).split(batch.lengths)
    scored = [batch.labels[0][own] for own in places]
    texts = [training.builder.tokenizer.decode(row[row != IGNORE][:-1]) for row in scored]
    count = STAGES[stage].documents
    first = STAGES[stage].first_document + count  # of the stage's second step
    chosen = [document(n) for n in range(first, first + count)]
    reads = len(texts) - count
    assert reads == STAGES[stage].batch and texts[reads:] == [d.summary for d in chosen]
    for text in texts[:reads] + [d.text for d in chosen]:
        drawn = torch.from_numpy(render_pages(text, training.builder.style).pages)
        assert batch.pages[pages : pages + len(drawn), 0].equal(drawn), text
        pages += len(drawn)
    assert pages == len(batch.pages) and len(targets) == (
        len(texts) if STAGES[stage].guide_weight else 0
    )


SUMMARIES, NAMES = ([stage.name for stage in STAGES].index(name) for name in ("summaries", "names"))


@pytest.mark.slow
def test_the_letters_that_are_to_be_looked_for_are_those_of_the_answer(training):
    batch, targets = at(training, NAMES)._data(ENDS[NAMES - 1])
    starts = [0, *torch.tensor(batch.lengths).cumsum(0).tolist()]
    found = []
    for start, length, pairs in zip(starts, batch.lengths, targets):
        own = slice(start, start + length)
        answer = length - int((batch.labels[0, own] != IGNORE).sum())
        visual = batch.image_mask[0, own].nonzero()[:, 0].tolist()
        assert all(place in visual for _, places in pairs for place in places)
        found.append([query + 1 - answer for query, _ in pairs])
    read, *told = found
    text = training.words.text(
        ENDS[NAMES - 1] * 4096, STAGES[NAMES].min_chars, STAGES[NAMES].max_chars
    )
    assert read == [i for i, letter in enumerate(text) if letter.isalnum()]
    rows = [document(STAGES[NAMES].first_document + n) for n in range(STAGES[NAMES].documents)]
    assert told == [[i for i, _ in copied(d.text, d.summary)] for d in rows] and all(told)


@pytest.mark.slow
def test_a_guided_step_turns_the_heads_to_where_the_letters_stand(tmp_path):
    def missed_after_steps(guided: bool) -> float:
        training = at(Training(tmp_path / str(guided), 0, 1), NAMES)
        batch, targets = training._data(ENDS[NAMES - 1])
        for _ in range(12):
            training._train_step((batch, targets if guided else []))
        with training.guide, torch.no_grad():
            training.model.loss(batch)
        total, count = training.guide.loss(batch.lengths, targets)
        return total.item() / count

    assert missed_after_steps(True) < missed_after_steps(False) - 0.3


def test_the_nearest_summary_is_the_one_that_was_meant():
    for document_ in documents("val")[:40]:
        for right in document_.summaries:
            assert nearest(document_, right) == right
            assert nearest(document_, right[: len(right) * 3 // 4]) == right


@pytest.mark.slow
def test_what_a_document_s_pages_are_to_the_frozen_encoder_is_kept_if_it_comes_again(training):
    batch, _ = at(training, NAMES)._data(ENDS[NAMES - 1])
    training._with_features(batch)
    assert not training.features
    first, _ = at(training, SUMMARIES)._data(training.step)
    fresh = training._with_features(first)
    assert sorted(training.features) == list(range(STAGES[SUMMARIES].documents))  # and no words
    kept = {n: features.clone() for n, features in training.features.items()}
    training.features = {n: features + 1 for n, features in kept.items()}
    again = training._with_features(first).features - fresh.features
    of_words = torch.tensor([first.rows[owner] < 0 for owner in first.owners])
    assert again[of_words].eq(0).all() and (again[~of_words] - 1).abs().max() < 1e-5


# -- how it is trained


def test_stages_follow_each_other_and_each_warms_up():
    ends = [stage_at(step)[1] for step in range(0, ENDS[-1], 100)]
    assert ends == sorted(ends) and len(set(ends)) == len(STAGES)
    for stage, end in zip(STAGES, ENDS):
        assert learning_rate(end - stage.steps) <= stage.first_rate / 100
        a_step_before = stage.last_rate + (stage.first_rate - stage.last_rate) / stage.steps
        assert learning_rate(end - 1) == pytest.approx(a_step_before)


@pytest.mark.slow
def test_the_first_stage_teaches_the_encoder_and_leaves_the_decoder_alone(training):
    before = {name: p.clone() for name, p in training.model.named_parameters()}
    first = training._data(0)
    losses = [total / count for total, count in (training._train_step(first) for _ in range(30))]
    moved = {
        name.split(".")[1]
        for name, p in training.model.named_parameters()
        if not p.equal(before[name])
    }
    assert losses[-1] < losses[0] - 0.5
    assert moved == {"sam_model", "vision_model", "projector"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, NAMES])
def test_taken_up_again_it_goes_on_as_if_undisturbed(tmp_path, stage):
    def losses(training: Training, steps: int) -> list:
        return [training._train_step(training._data(training.step)) for _ in range(steps)]

    training = at(Training(tmp_path, 0, 1), stage)
    losses(training, 2)
    facts = {
        **training.facts,
        "step": training.step,
        "best": None,
        "best_metric": "cer",
        "stale": 0,
        "score": 1.0,
        "unlogged": [],
    }
    taken = checkpoint.take_snapshot(training.model, training.optimizer, training.scaler, facts)
    checkpoint.save(tmp_path / "checkpoints", taken, training.model, training.tokenizer_files)
    after = losses(training, 2)
    again = Training(tmp_path, 0, 1)
    assert again.step == training.step - 2 and losses(again, 2) == after


# -- what came of it


def test_the_model_that_comes_with_the_package_is_the_recipe_s(tmp_path):
    assert presets.find_checkpoint(TINY_READER) == SHIPPED
    assert config_from_file(SHIPPED / "config.json") == TINY_READER_CONFIG
    for name, content in tokenizer_files(letter_tokenizer()).items():
        assert (SHIPPED / name).read_text(encoding="utf-8") == content
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 8e6
    assert PROVENANCE["step"] == PROVENANCE["of"] == CURVE[-1]["step"] == ENDS[-1]
    assert len(PROVENANCE["commit"]) == 40


def test_it_is_said_to_misread_fewer_than_5_characters_in_100_before_and_after_it_summarises():
    found = next(entry for entry in CURVE if "misread" in entry)
    assert found["step"] == READS and all(rate < 0.05 for rate in found["misread"].values())
    assert all(rate < 0.05 for rate in PROVENANCE["misread"].values())


@pytest.fixture(scope="module")
def shipped() -> DeepseekOCR:
    return DeepseekOCR.from_pretrained(TINY_READER, torch.float32)


def test_it_still_reads_pages_that_it_has_never_seen(shipped, words, builder):
    texts = [words.text(UNSEEN + 5000 + n, 8, 70) for n in range(48)]
    read = answers(shipped, builder, [Row("unseen", "", text) for text in texts], 80)
    edits = sum(character_error_rate(t, r) * len(t) for t, r in zip(texts, read))
    assert edits / sum(map(len, texts)) < 0.05


@pytest.mark.slow
def test_what_its_summaries_state_stands_in_documents_that_it_has_never_seen(shipped, builder):
    """By greedy decoding; in another document of the same language far fewer do."""
    chosen = documents("val")[-24:]
    written = answers(shipped, builder, [summary_row(d) for d in chosen], 200)
    stated, elsewhere = (
        [word in d.text for d, text in zip(documents_, written) for word in statements(text)]
        for documents_ in (chosen, chosen[4:] + chosen[:4])  # of the same language
    )
    assert sum(stated) > 0.8 * len(stated) and sum(elsewhere) < sum(stated) / 2


@pytest.mark.slow
def test_its_summaries_name_the_persons_and_towns_of_documents_that_it_has_never_seen(
    shipped, words, builder
):
    named, _, shown = Reading(shipped, builder, words).summary_accuracy(48)
    assert named > 0.65 and all(text for _, text in shown)


def test_what_the_given_summaries_state_stands_in_their_documents_98_times_in_100():
    """What the README measures its own against."""
    stated = [word in d.text for d in documents("val") for word in statements(d.summary)]
    assert round(sum(stated) / len(stated), 2) == 0.98
