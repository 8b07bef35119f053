"""A DeepSeek-OCR that is given a window becomes an Unlimited-OCR: by the same commands, in files
that others read."""

import json

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from run_files import losses, newest
from small_model import SMALL

from deepsynth_min import evaluate, export, generate
from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.official import config_from_dict, config_from_file, config_to_dict
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.weights import official_views

WINDOW = 8
UNLIMITED = SMALL.with_attention(window=WINDOW, context=2048)
GIVEN = ("--attention-window", WINDOW, "--context", 2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, without a window, and two runs that give it one: of the decoder, and of an adapter."""
    folder = tmp_path_factory.mktemp("family")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    run(folder, *GIVEN, "--max-steps", 40, "--lr", 0.003, "--precision", "fp32", out="decoder")
    run(folder, *GIVEN, "--tune", "lora", "--max-steps", 2, "--precision", "fp32", out="lora")
    return folder


def test_it_learns_and_goes_on(folder):
    first, last = losses(folder / "decoder", "train")[0], losses(folder / "decoder", "train")[-1]
    assert last < 0.85 * first
    more = ("--max-steps", 42, "--precision", "fp32", "--resume", "auto")
    run(folder, *GIVEN, *more, out="decoder")
    assert losses(folder / "decoder", "train")[-1] < first


def test_its_checkpoints_say_what_they_are(folder):
    written = json.loads((newest(folder / "decoder") / "config.json").read_text())
    base = json.loads((folder / "base" / "config.json").read_text())
    assert written["architectures"] == ["UnlimitedOCRForCausalLM"]
    assert (written["sliding_window"], written["language_config"]["max_position_embeddings"]) == (
        WINDOW,
        2048,
    )
    changed = {name for name in base.keys() | written.keys() if base.get(name) != written.get(name)}
    assert changed == {
        "architectures",
        "auto_map",
        "language_config",
        "max_position_embeddings",
        "model_type",
        "sliding_window",
    }
    assert config_from_file(newest(folder / "decoder") / "config.json") == UNLIMITED


@pytest.mark.parametrize("which, options", [("decoder", []), ("lora", ["--merge"])])
def test_evaluation_generation_and_export_have_the_window(folder, tmp_path, capsys, which, options):
    source, to = folder / which, tmp_path / "exported"
    assert export.main(["--run", str(source), "--to", str(to), *options]) == 0
    assert config_from_file(to / "config.json") == UNLIMITED
    capsys.readouterr()
    scored = "--answer-samples 0 --ablation-samples 0".split()
    assert evaluate.main(["--run", str(source), *scored]) == 0
    of_run = json.loads(capsys.readouterr().out)
    assert of_run["loss"] == pytest.approx(losses(source)[-1], rel=1e-5)
    answers = []
    for model in (["--run", str(source)], ["--model", str(to), "--beams", "1"]):
        words = [*model, "--max-new-tokens", "40", str(folder / "rows.jsonl")]
        out = tmp_path / f"{len(answers)}.jsonl"
        assert generate.main([*words, "--out", str(out)]) == 0
        answers.append([json.loads(line)["answer"] for line in out.read_text().splitlines()])
    assert len(answers[0]) == len(answers[1]) == 12  # weights of the export are rounded to bf16

    peers = pytest.importorskip("peers", reason="transformers is not installed")
    from transformers import AutoConfig

    ours = DeepseekOCR.from_pretrained(to, dtype=torch.float32).eval()
    assert AutoConfig.from_pretrained(to).text_config.sliding_window == WINDOW
    peer = peers.whole_peer(ours)
    read = type(peer).from_pretrained(to, config=peer.config, dtype=torch.float32).eval()
    ids = torch.randint(5, 4000, (1, 30))
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, peer.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"sliding_window": -1}, "sliding_window = -1 is not a whole number from 0"),
        ({"sliding_window": "128"}, "sliding_window = '128' is not"),
        ({"architectures": ["UnlimitedOCRForCausalLM"]}, "without a sliding_window"),
    ],
)
def test_a_window_that_cannot_be_is_refused(changes, says):
    official = config_to_dict(SMALL)
    assert config_from_dict(official | {"sliding_window": None}) == SMALL
    with pytest.raises(UserError, match=says):
        config_from_dict(official | changes)


def test_the_preset_has_the_official_tensors_of_deepseek_ocr():
    with torch.device("meta"):
        one, other = (
            {name: view.shape for name, view in official_views(DeepseekOCR(PRESETS[name])).items()}
            for name in ("unlimited-ocr", "deepseek-ocr")
        )
    assert one == other and len(one) == 2710
    config = PRESETS["unlimited-ocr"].decoder
    assert (config.sliding_window, config.max_position_embeddings) == (128, 32768)
