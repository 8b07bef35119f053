"""A model's configuration: every field that cannot be is refused by file and name, at once."""

import json
import os

import pytest
from golden import GOLDEN

from deepsynth_min.errors import UserError, one_line
from deepsynth_min.model.official_config import config_from_dict, config_from_file, config_to_dict
from deepsynth_min.model.presets import PRESETS, TINY_READER_CONFIG

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
