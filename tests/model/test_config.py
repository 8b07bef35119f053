"""A model's configuration: every field that cannot be is refused by file and name, at once."""

import copy
import json
import os

import pytest
from golden import GOLDEN
from small_model import SMALL_2

from deepsynth_min.errors import UserError, one_line
from deepsynth_min.model.shape.official import config_from_dict, config_from_file, config_to_dict
from deepsynth_min.model.shape.presets import PRESETS, TINY_READER_CONFIG

SAM, CLIP = "vision_config/width/sam_vit_b/", "vision_config/width/clip-l-14-224/"
LANGUAGE = "language_config/"


@pytest.mark.parametrize(
    "place, value",
    [
        (LANGUAGE + name, value)
        for name in (
            "hidden_size",
            "vocab_size",
            "num_hidden_layers",
            "num_attention_heads",
            "n_routed_experts",
            "moe_intermediate_size",
            "max_position_embeddings",
        )
        for value in (0, -1, 10**30, "x", None, 1.5, True, [])
    ]
    + [
        (SAM + name, value)
        for name in ("heads", "layers", "neck_channels", "window_size")
        for value in (0, float("inf"), "")
    ]
    + [(SAM + "downsample_channels", value) for value in ("", None, [], [0, 56], {"a": 1})]
    + [(SAM + "global_attn_indexes", value) for value in ("1", [-1], [4], [[1]])]
    + [(CLIP + name, 0) for name in ("patch_size", "image_size", "width", "heads")]
    + [(LANGUAGE + "rope_theta", value) for value in (0, float("nan"), 10**400, "1", None)]
    + [
        ("rendered_text", value)
        for value in (
            None,
            [],
            {"font": 24},
            {"font_size": -1},
            {"font_size": 2.5},
            {"line_height": "2"},
            {"line_height": float("nan")},
            {"margin": True},
            {"prompt_end": "x"},
            {"prompt_end": 3},
        )
    ]
    + [("vision_config/image_size", value) for value in (1, 0, 100, "256")]
    + [("candidate_resolutions", value) for value in ([[".", 256]], [[0]], [], "256", None, {})]
    + [
        (name, value)
        for name in (
            "vision_config",
            "vision_config/width",
            "language_config",
            "projector_config",
            SAM[:-1],
            CLIP[:-1],
        )
        for value in (None, [], "text", 7)
    ],
)
def test_a_value_that_no_model_has_is_refused_by_file_and_field(tmp_path, place, value):
    official = json.loads((GOLDEN / "config.json").read_text())
    *path, name = place.split("/")
    part = official
    for step in path:
        part = part[step]
    part[name] = value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(official))
    with pytest.raises(UserError) as raised:
        config_from_file(file)
    assert str(raised.value).startswith(f"{file}: ")
    section = place.split("/")[0]
    assert name in str(raised.value) or section in str(raised.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b"\xff", b""])
def test_what_is_not_json_is_refused_by_name(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match="config.json: not "):
        config_from_file(file)


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("", "pipe", "loop", "none", "a\0b", "a\ud800", "x" * 300, "/dev/zero"):
        with pytest.raises(UserError):
            config_from_file(tmp_path / name)


def test_a_message_is_one_short_line_whatever_it_quotes():
    assert one_line("C:\\ü: “漢字”") == "C:\\ü: “漢字”"
    assert one_line("a\nb\r\x1b[31m\u2028\ud800") == "a\\nb\\r\\x1b[31m\\u2028\\ud800"
    long = one_line("start" + "x" * 10**6 + "end")
    assert len(long) < 1100 and long.startswith("start") and long.endswith("end")


def test_how_text_is_drawn_is_kept_with_the_model_and_absent_from_the_official_one():
    assert TINY_READER_CONFIG.text.font_size == 24
    assert config_from_dict(config_to_dict(TINY_READER_CONFIG)) == TINY_READER_CONFIG
    assert "rendered_text" not in config_to_dict(PRESETS["deepseek-ocr"])


# -- DeepSeek-OCR-2, and models of other kinds ----------------------------------------------------


@pytest.fixture(scope="module")
def official_config() -> dict:
    return json.loads((GOLDEN / "official_config_2.json").read_text())


def test_the_preset_writes_the_official_config_and_is_read_from_it(official_config):
    assert config_to_dict(PRESETS["deepseek-ocr-2"]) == official_config
    assert config_from_dict(official_config) == PRESETS["deepseek-ocr-2"]
    # The official file says 1024 channels; its code and its tensors have 896.
    assert official_config["vision_config"]["width"]["sam_vit_b"]["downsample_channels"][1] == 1024
    assert config_from_dict(official_config).sam.downsample == (512, 896)


@pytest.mark.parametrize("config", [PRESETS["tiny-2"], SMALL_2], ids=["tiny-2", "small"])
def test_a_miniature_is_read_from_what_it_writes(config):
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    "place, value, named",
    [
        ("qwen2-0-5b", {}, "lacks or misstates 'dim'"),
        ("qwen2-0-5b", 7, "vision_config"),
        ("qwen2-0-5b/dim", 0, "qwen2-0-5b.dim = 0 is not a whole number"),
        ("qwen2-0-5b/dim", 900, "qwen2-0-5b.dim must be a multiple of its heads"),
        ("qwen2-0-5b/dim", 10**30, "qwen2-0-5b.dim"),
        ("qwen2-0-5b/layers", 10**6, "qwen2-0-5b.layers = 1000000 is not"),
        ("qwen2-0-5b/heads", "14", "qwen2-0-5b.heads"),
        ("qwen2-0-5b/key_value_heads", 3, "multiple of its key_value_heads"),
        ("qwen2-0-5b/mlp_dim", None, "qwen2-0-5b.mlp_dim"),
        ("qwen2-0-5b/rope_theta", -1, "qwen2-0-5b.rope_theta"),
        ("qwen2-0-5b/page_sides", [768], "page_sides must be two multiples of 64"),
        ("qwen2-0-5b/page_sides", [1024, 768], "page_sides must be two multiples of 64"),
        ("qwen2-0-5b/page_sides", [768, 1000], "page_sides must be two multiples of 64"),
        ("qwen2-0-5b/page_sides", [768, 2**20], "page_sides"),
        ("qwen2-0-5b/page_sides", "768", "page_sides"),
        ("qwen2-0-5b/dropout", 0.1, "qwen2-0-5b.dropout is not supported"),
        ("sam_vit_b/downsample_channels", [512, 900], "must end in the dim of qwen2-0-5b"),
        ("clip-l-14-224", {}, "must have one of clip-l-14-224 and qwen2-0-5b"),
    ],
)
def test_a_value_that_no_model_has_is_refused_by_name(official_config, place, value, named):
    changed = copy.deepcopy(official_config)
    *path, last = place.split("/")
    section = changed["vision_config"]["width"]
    for step in path:
        section = section[step]
    section[last] = value
    with pytest.raises(UserError, match=f"config.json: .*{named}"):
        config_from_dict(changed)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"architectures": ["DeepseekOCRForCausalLM"]}, "DeepseekOCRForCausalLM has no qwen2-0-5b"),
        ({"candidate_resolutions": [[640, 640]]}, "candidate_resolutions: 640 px"),
        ({"projector_config": {"input_dim": 2048}}, "projector_config.input_dim = 2048, not 896"),
        ({"sliding_window": 128}, "sliding_window: a model with qwen2-0-5b has none"),
    ],
)
def test_fields_that_contradict_the_encoder_are_refused(official_config, change, named):
    with pytest.raises(UserError, match=f"config.json: {named}"):
        config_from_dict(official_config | change)


NATIVE = {"model_type": "deepseek_ocr2", "text_config": {}, "vision_config": {}}


@pytest.mark.parametrize(
    "other, named",
    [
        (
            {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]},
            r"a qwen2_vl model \(Qwen2VLForConditionalGeneration\)",
        ),
        ({"model_type": "paligemma", "text_config": {}}, "a paligemma model"),
        (NATIVE | {"architectures": ["DeepseekOcr2ForConditionalGeneration"]}, "a deepseek_ocr2"),
        ({"architectures": ["LlamaForCausalLM"]}, r"a model \(LlamaForCausalLM\)"),
        (
            {"model_type": "deepseek_vl_v2", "architectures": ["X"], "language_config": {}},
            r"a deepseek_vl_v2 model \(X\)",
        ),
        ({"architectures": [["x"]], "model_type": 7}, "a 7 model"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_name(other, named):
    family = "this trains DeepSeek-OCR, Unlimited-OCR and DeepSeek-OCR-2"
    with pytest.raises(UserError, match=f"config.json: {named}.*; {family}"):
        config_from_dict(other)


def test_what_is_no_model_at_all_is_refused():
    for other in ({}, {"architectures": "DeepseekOCRForCausalLM"}, {"architectures": []}):
        with pytest.raises(UserError, match="config.json: no language_config; not a checkpoint of"):
            config_from_dict(other)
