"""--page-as: the same row with something else in its page's place, as a sample and as a batch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from adapter_runs import run, write_base, write_rows
from commands import words
from run_files import losses, newest
from small_model import SMALL

from deepsynth_min import evaluate, generate, train
from deepsynth_min.data.row import Row, RowError, TooLong
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import encode, load_tokenizer
from deepsynth_min.evaluation.evaluator import Evaluator
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.options import change
from deepsynth_min.settings import Settings
from deepsynth_min.training.distributed import World

TEXT = "Four score and seven years ago our fathers brought forth on this continent a new nation"
ROW = Row("a row", "an answer", TEXT)
ARMS = ("text", "head", "tail", "none", "mean")


def builder(kind: str = "rendered", **changes) -> SampleBuilder:
    settings = change(Settings(), page_as=kind, font_size=10, margin=4, **changes)
    return SampleBuilder(settings, SMALL, load_tokenizer())


def document(text: str = TEXT) -> list[int]:
    return encode(load_tokenizer(), text)


VISUAL = builder()(ROW).visual  # 7 a page


def middle(kind: str, row: Row = ROW) -> list[int]:
    """The ids between BOS and the instruction; what is around them must be as with pages."""
    made = builder(kind)
    sample, rendered = made(row), builder()(row)
    rest = rendered.ids[1 + rendered.visual :]
    assert sample.ids[0] == made.special.bos and sample.ids[-len(rest) :] == rest
    answer = len(rendered.ids) - rendered.prompt
    assert sample.prompt == len(sample.ids) - answer and not len(sample.pages)
    return sample.ids[1 : -len(rest)]


def test_the_page_costs_less_than_the_text_here():
    assert 0 < VISUAL < len(document())


def test_text_is_the_whole_document():
    assert middle("text") == document()


def test_head_and_tail_are_as_many_tokens_as_the_page_takes():
    assert middle("head") == document()[:VISUAL]
    assert middle("tail") == document()[-VISUAL:]


def test_none_is_nothing():
    assert middle("none") == []


def test_mean_takes_the_positions_of_the_page():
    made = builder("mean")
    assert middle("mean") == [made.special.image] * VISUAL and made(ROW).visual == VISUAL


@pytest.mark.parametrize("kind", ["text", "head", "tail"])
def test_a_document_shorter_than_its_page_is_there_as_it_is(kind):
    assert middle(kind, replace(ROW, text="ab")) == document("ab")


def test_a_row_without_a_page_stays_as_it_is():
    question = Row("a row", "an answer", instruction="What is asked?")
    assert builder("head")(question).ids == builder()(question).ids


def test_an_image_has_no_text_to_stand_for_it(tmp_path):
    from PIL import Image

    Image.new("L", (128, 128)).save(tmp_path / "a.png")
    with pytest.raises(RowError, match="an image, which --page-as tail cannot stand for"):
        builder("tail")(Row("a row", "an answer", images=(tmp_path / "a.png",)))


def test_a_text_too_long_for_the_context_is_named_or_cut():
    long = replace(ROW, text="a b " * 1000)
    with pytest.raises(TooLong, match=r"tokens in place of pages \(--page-as text\)"):
        builder("text")(long)
    cut = builder("text", on_too_long="truncate")(long)
    assert cut.truncated and len(cut.ids) <= SMALL.decoder.max_position_embeddings


@torch.no_grad()
@pytest.mark.parametrize("pack", [False, True])
def test_mean_scores_averages_of_equal_pieces_of_the_documents_embeddings(pack):
    """Against the plain form: one row at a time, each piece averaged by hand."""
    torch.manual_seed(0)
    model, made = DeepseekOCR(SMALL), builder("mean")
    rows = [ROW, replace(ROW, text=TEXT[:9]), replace(ROW, summary="more", text=TEXT * 2)]
    expected = 0.0
    for row in rows:
        sample, ids = made(row), document(row.text)
        x = model.model.embed_tokens(torch.tensor(sample.ids))
        long = len(ids) % sample.visual  # the first pieces are one token longer
        size = len(ids) // sample.visual
        ends = [k * size + min(k, long) for k in range(sample.visual + 1)]
        for k, (start, end) in enumerate(zip(ends, ends[1:])):
            x[1 + k] = model.model.embed_tokens(torch.tensor(ids[start:end])).mean(0)
        hidden, _ = model.hidden(x[None])
        logits = F.linear(hidden[0], model.lm_head.weight)[sample.prompt - 1 : -1]
        target = torch.tensor(sample.ids[sample.prompt :])
        expected += float(F.cross_entropy(logits, target, reduction="sum"))
    batch = collate([made(row) for row in rows], made.special, pack=pack)
    assert float(model.loss(batch)[0]) == pytest.approx(expected, rel=1e-5)


def test_mean_sends_gradients_to_every_token_of_the_document():
    model, made = DeepseekOCR(SMALL), builder("mean")
    model.loss(collate([made(ROW)], made.special))[0].backward()
    assert (model.model.embed_tokens.weight.grad[document()] != 0).any(1).all()


def test_there_is_no_page_to_change_so_nothing_is_said_of_reading():
    model, made = DeepseekOCR(SMALL), builder("mean")
    world = World(0, 1, torch.device("cpu"))
    with torch.no_grad():
        found = Evaluator(model, [ROW, ROW], made, world).losses()
    assert not any(name.startswith("reads/") for name in found)
    assert found["prompt_tokens"] == made(ROW).prompt and found["pages"] == 0


@pytest.mark.parametrize(
    "option",
    ["--tune all", "--augment", "--vary ink=0:9", "--feature-cache memory", "--best reads/blank"],
)
def test_what_needs_pages_is_refused_in_one_line(tmp_path, capsys, option):
    given = words("--model tiny --page-as none --out {} --ablation-samples 2", tmp_path / "run")
    assert train.main([*given, *option.split()]) == 2
    assert "not with --page-as none, which has no pages" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARMS)
def test_a_run_trains_and_its_checkpoint_is_asked_in_the_same_way(folder, capsys, kind):
    out = run(folder, "--page-as", kind, "--max-steps", "3", out=kind)
    assert losses(out, "train")[-1] < losses(out, "train")[0]
    capsys.readouterr()
    assert evaluate.main(words("--run {} --answer-samples 0", out)) == 0
    assert f'"loss": {losses(out)[-1]}' in capsys.readouterr().out
    (folder / "text.txt").write_text(TEXT)
    answers = []
    for asked in (words("--run {}", out), words("--model {}", newest(out))):
        assert generate.main([*asked, "--max-new-tokens", "8", str(folder / "text.txt")]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
