"""Does it read? The ablations on models of which it is known, and what training makes of them."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import mean, median

import jiwer
import pytest
import torch
import torch.nn.functional as F
from small_model import SMALL

from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import encode, load_tokenizer
from deepsynth_min.evaluation import ablations, evaluator
from deepsynth_min.evaluation.figures import DEFINITIONS, WITH_INTERVAL, describe
from deepsynth_min.evaluation.text_metrics import bootstrap_interval
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.generation import greedy
from deepsynth_min.options import change
from deepsynth_min.settings import Settings
from deepsynth_min.training.distributed import World

WORLD = World(0, 1, torch.device("cpu"))
TEXTS = {"dark": "M" * 300, "light": ". " * 40}  # three pages, and one


def rows(number: int = 8) -> list[Row]:
    """What is asked can be answered from the page alone: which kind it is of."""
    kinds = [kind for _ in range(number) for kind in TEXTS][:number]
    return [Row(str(i), kind, TEXTS[kind]) for i, kind in enumerate(kinds)]


def make(**changes) -> tuple[DeepseekOCR, SampleBuilder]:
    torch.manual_seed(0)
    small = {"batch_size": 3, "max_new_tokens": 4, "font_size": 10, "margin": 4}
    small |= {"answer_samples": 8}
    settings = change(Settings(), **(small | changes))
    return DeepseekOCR(SMALL), SampleBuilder(settings, SMALL, load_tokenizer())


@pytest.fixture(scope="module")
def reader() -> tuple[DeepseekOCR, SampleBuilder]:
    """A model that was trained to say of which kind its pages are, which only they can tell it."""
    torch.set_num_threads(1)  # tiny products: a second thread only waits
    model, builder = make()
    batch = collate([builder(row) for row in rows(2)], builder.special)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(110):
        total, count = model.loss(batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(total.detach()) / count < 0.1
    return model, builder


def loss_with(model, builder, row: Row, pages=None, ids=None) -> tuple[float, int]:
    """The reference: one row, its sequence laid out by hand, scored from all logits."""
    paper = pages == "paper"
    pages = None if paper else pages
    sample = builder(row)
    visual = sample.visual if pages is None else builder.prompt(pages).visual
    front = [builder.special.image] * visual if ids is None else ids
    answer = [*encode(builder.tokenizer, row.summary), builder.special.eos]
    asked = encode(builder.tokenizer, "\n" + builder.settings.data.instruction)
    whole = torch.tensor([builder.special.bos, *front, *asked, *answer])
    x = model.model.embed_tokens(whole)
    if ids is None:
        drawn = sample.pages if pages is None else builder.prompt(pages).pages
        drawn = torch.from_numpy(drawn)
        x[1 : 1 + visual] = model.encode_pages(torch.full_like(drawn, 255) if paper else drawn)
    hidden, _ = model.hidden(x[None])
    logits = F.linear(hidden[0], model.lm_head.weight)[-len(answer) - 1 : -1]
    return float(F.cross_entropy(logits, torch.tensor(answer), reduction="sum")), len(answer)


@torch.no_grad()
def test_ablations_are_differences_of_losses_in_nats_per_token(reader):
    model, builder = reader
    data = rows(5)
    partner = ablations.partners(5, seed=0)
    result = evaluator.Evaluator(model, data, builder, WORLD).losses()
    plain = [loss_with(model, builder, row) for row in data]
    tokens = sum(count for _, count in plain)
    assert result["loss"] == pytest.approx(sum(loss for loss, _ in plain) / tokens, abs=1e-4)

    def reads(losses) -> float:
        return sum(a - b for (a, _), (b, _) in zip(losses, plain)) / tokens

    text = [encode(builder.tokenizer, row.text)[: builder(row).visual] for row in data]
    for kind, expected in {
        "shuffled": [loss_with(model, builder, r, data[p]) for r, p in zip(data, partner)],
        "blank": [loss_with(model, builder, row, "paper") for row in data],
        "without": [loss_with(model, builder, row, ids=[]) for row in data],
        "text": [loss_with(model, builder, row, ids=ids) for row, ids in zip(data, text)],
    }.items():
        assert result[f"reads/{kind}"] == pytest.approx(reads(expected), abs=1e-3), kind
    visual = sum(builder(row).visual for row in data)
    lengths = [len(encode(builder.tokenizer, row.text)) for row in data]
    assert result["compression"] == pytest.approx(sum(lengths) / visual)


def test_a_model_that_must_copy_from_the_page_loses_much_without_it(reader):
    result, _ = evaluator.Evaluator(reader[0], rows(), reader[1], WORLD)()
    assert result["reads/shuffled"] > 0.3 and result["reads/without"] > 0.1
    assert ablations.warning(result) is None
    assert result["exact_match"] == result["eos_rate"] == 1 and result["cer"] == 0


def test_a_model_that_cannot_see_the_page_loses_nothing_and_a_warning_says_so():
    model, builder = make()
    with torch.no_grad():  # attention adds nothing: each token knows itself only
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    result, _ = evaluator.Evaluator(model, rows(), builder, WORLD)()
    for kind in ablations.ABLATIONS:
        assert abs(result[f"reads/{kind}"]) < 1e-5
    assert "does not read the page" in ablations.warning(result)


def test_partners_are_others_the_same_for_a_seed_and_each_row_is_one_once():
    for n in range(2, 30):
        partner = ablations.partners(n, seed=n)
        assert sorted(partner) == list(range(n)) and all(p != i for i, p in enumerate(partner))
        assert partner.tolist() == ablations.partners(n, seed=n).tolist()


@torch.no_grad()
def test_figures_about_answers_are_those_of_the_answers_taken_one_by_one():
    model, builder = make(max_new_tokens=12, answer_samples=4)
    data = rows(6)
    result, shown = evaluator.Evaluator(model, data, builder, WORLD).answers()
    texts = []
    for row in data[:4]:
        ids = greedy(model, collate([builder.prompt(row)], builder.special), 12)[0]
        texts.append(builder.tokenizer.decode(ids))
    rates = [jiwer.cer(row.summary, text) for row, text in zip(data, texts)]
    references = [row.summary for row in data[:4]]
    assert result["cer_corpus"] == pytest.approx(jiwer.cer(references, texts))
    assert [found["cer"] for found in shown] == pytest.approx(rates)
    assert (result["cer_low"], result["cer_high"]) == bootstrap_interval(rates)
    assert result["rougeL_low"] <= result["rougeL"] <= result["rougeL_high"]
    assert [found["answer"] for found in shown] == texts and result["answers"] == 4
    assert result["cer"] == pytest.approx(mean(rates)) and result["exact_match"] == 0
    assert result["cer_median"] == pytest.approx(median(rates))


class Thread(World):
    """One of two ranks that are threads of this process."""

    barrier, given = threading.Barrier(2, timeout=60), [(), ()]

    def sum(self, *values: float) -> list[float]:
        self.given[self.rank] = values
        self.barrier.wait()
        found = [math.fsum(pair) for pair in zip(*self.given, strict=True)]
        self.barrier.wait()
        return found


def test_two_ranks_find_the_figures_of_one_and_the_same_intervals():
    model, builder = make(max_new_tokens=12, answer_samples=7, ablation_samples=2)
    data = [replace(row, summary=row.summary * (i + 1)) for i, row in enumerate(rows(7))]
    one, shown = evaluator.Evaluator(model, data, builder, WORLD)()
    with ThreadPoolExecutor(2) as pool:
        ranks = [Thread(rank, 2, WORLD.device) for rank in range(2)]
        each = [pool.submit(evaluator.Evaluator(model, data, builder, rank)) for rank in ranks]
        (first, some), (second, others) = (future.result() for future in each)
    assert first == second == pytest.approx(one, rel=1e-12)
    assert one["cer_low"] < one["cer"] < one["cer_high"] and some and others
    assert sorted([*some, *others], key=lambda answer: answer["number"]) == shown


def test_a_line_of_training_says_over_how_many_answers_and_how_far_they_spread():
    figures = {"loss": 1.0, "perplexity": math.e, "eos_rate": 1.0, "cer": 0.557, "answers": 8}
    line = describe(figures | {"cer_low": 0.412, "cer_high": 0.697})
    assert line.endswith("CER 0.557 (0.41-0.70, 8 answers), ended 100%")
    assert "CER 0.557 (1 answer)" in describe(figures | {"answers": 1})


def test_every_figure_of_an_evaluation_is_defined():
    model, builder = make(answer_samples=3, unseen_style=("font_size=30",))
    result, _ = evaluator.Evaluator(model, rows(3), builder, WORLD)()
    ends = {f"{name}_{end}" for name in WITH_INTERVAL for end in ("low", "high")}
    assert set(result) == set(DEFINITIONS) | ends


def test_rows_of_images_have_no_text_to_put_in_the_place_of_their_page(tmp_path):
    from PIL import Image

    Image.new("L", (128, 128), 90).save(tmp_path / "a.png")
    images = [Row("i", "dark", images=(tmp_path / "a.png",)) for _ in range(2)]
    model, builder = make()
    result = evaluator.Evaluator(model, images, builder, WORLD).losses()
    assert "reads/text" not in result and "compression" not in result
    assert result["reads/blank"] != 0 and result["reads/shuffled"] == pytest.approx(0, abs=1e-6)
    mixed = evaluator.Evaluator(model, [*images, *rows(2)], builder, WORLD).losses()
    alone = evaluator.Evaluator(model, rows(2), builder, WORLD).losses()
    assert mixed["reads/text"] == pytest.approx(alone["reads/text"], abs=1e-5)
