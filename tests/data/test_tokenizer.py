"""Claims about the embedded tokenizer and about `encode`, which must also hold for DeepSeek's."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from deepsynth_min import tokenizer as tokenizer_command
from deepsynth_min.corpus import __main__ as corpus_command, documents as corpus
from deepsynth_min.data import tokenizer as tk
from deepsynth_min.errors import UserError

TOKENIZER = tk.load_tokenizer()
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Markers as official tokenizers have them: special or not, with a plain and a wide bar, nested.
MARKERS = ["<｜User｜>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<td>", "</td>"]
MARKERS += ["<|grounding|>", "<|ref|><td>"]

any_text = st.text(st.characters(codec="utf-8"))
marked_text = st.lists(
    st.sampled_from([*MARKERS, tk.IMAGE, tk.BOS, tk.EOS, tk.PAD, "<", "｜", ">", "a ", "\n"])
).map("".join)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A tokenizer with an official one's habits: begin token added, Llama named, many markers."""
    directory = tmp_path_factory.mktemp("official")
    made = Tokenizer.from_file(str(tk.EMBEDDED / "tokenizer.json"))
    made.add_special_tokens([AddedToken(text, special=True) for text in MARKERS[1:]])
    made.add_tokens([AddedToken(MARKERS[0], special=False, normalized=True)])
    made.save(str(directory / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "unk_token": None,
        "bos_token": tk.BOS,
        "eos_token": tk.EOS,
        "pad_token": tk.PAD,
        "tokenizer_class": "LlamaTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return tk.load_tokenizer(directory)


def test_training_again_gives_the_shipped_files_byte_for_byte():
    shipped = {name: (tk.EMBEDDED / name).read_bytes() for name in FILES}
    assert {
        name: text.encode() for name, text in tk.tokenizer_files(tk.train_tokenizer()).items()
    } == shipped


def test_ids_are_laid_out_like_deepseek_ocr():
    ids = tk.special_ids(TOKENIZER)
    assert (ids.bos, ids.eos, ids.pad, ids.image) == (0, 1, 2, 4095)


def test_the_vocabulary_has_no_gap():
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(tk.VOCABULARY))


def test_the_vocabulary_suits_the_hardware():
    assert len(TOKENIZER) % 64 == 0


def test_all_256_byte_tokens_are_there():
    """Each as the byte-level alphabet spells it: 188 bytes as themselves, the rest from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    assert set(alphabet) <= set(TOKENIZER.get_vocab())


@settings(max_examples=300)
@given(any_text)
def test_any_text_survives(text):
    assert TOKENIZER.decode(tk.encode(TOKENIZER, text)) == text


@settings(max_examples=300)
@given(marked_text)
def test_text_with_markers_survives(text):
    assert TOKENIZER.decode(tk.encode(TOKENIZER, text)) == text


@settings(max_examples=300)
@given(marked_text)
def test_text_never_yields_a_special_id(text):
    assert not set(tk.encode(TOKENIZER, text)) & set(TOKENIZER.get_added_vocab().values())


@settings(max_examples=300)
@given(text=marked_text)
def test_text_never_yields_an_added_id_of_an_official_tokenizer(official, text):
    ids = tk.encode(official, text)
    assert not set(ids) & set(official.get_added_vocab().values())
    assert official.decode(ids) == text


@given(any_text)
def test_text_without_markers_is_encoded_as_transformers_does(text):
    assert tk.encode(TOKENIZER, text) == TOKENIZER.encode(text, add_special_tokens=False)


def test_nothing_is_added_even_if_the_tokenizer_would(official):
    assert tk.encode(official, "a b") == tk.encode(TOKENIZER, "a b")
    assert tk.encode(official, "") == []


def test_transformers_adds_nothing_either():
    assert TOKENIZER.encode("a b", add_special_tokens=False) == TOKENIZER.encode("a b")


def test_an_instruction_may_use_markers(official):
    ids = tk.encode(official, "\n<|grounding|>Read.", "all")
    assert ids.count(official.get_added_vocab()["<|grounding|>"]) == 1


def test_an_answers_own_markers_are_single_tokens_but_none_that_frames_a_sequence(official):
    text = "<|ref|>title<|/ref|><|det|>[[1, 2]]<|/det|><td>48.00</td> "
    ids = tk.encode(official, text, "own")
    known = official.get_added_vocab()
    marks = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<td>", "</td>")
    assert [ids.count(known[mark]) for mark in marks] == [1] * 6
    assert tk.decode(official, ids) == text
    for frame in (tk.BOS, tk.EOS, tk.PAD, tk.IMAGE):
        spelled = tk.encode(official, f"a {frame} b", "own")
        assert known[frame] not in spelled and tk.decode(official, spelled) == f"a {frame} b"


def test_what_is_decoded_is_what_was_encoded(official):
    for document in corpus.documents("val")[:50]:
        assert tk.decode(official, tk.encode(official, document.summary, "own")) == document.summary
    assert tk.decode(official, [0, *tk.encode(official, "a"), 1, 2]) == "a"


def test_encode_leaves_no_trace_on_the_tokenizer(official):
    before = tk.encode(official, "<td>", "all")
    tk.encode(official, "<td>")
    assert tk.encode(official, "<td>", "all") == before


def test_threads_may_share_a_tokenizer(official):
    texts = [f"<td>{document.summary}" for document in corpus.documents("val")]
    alone = [
        tk.encode(official, text, special) for text in texts for special in ("all", "own", "none")
    ]
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(tk.encode, official, t, s) for t in texts for s in ("all", "own", "none")
        ]
    assert [job.result() for job in jobs] == alone


def test_digits_are_read_one_by_one():
    assert len(tk.encode(TOKENIZER, "90210")) == 5


def test_held_out_text_is_as_short_as_training_text():
    """Within 3 percent: the merges are those of the languages, not of the documents."""
    rate = {}
    for split in ("train", "val"):
        texts = [document.text for document in corpus.documents(split)[:256]]
        rate[split] = sum(len(tk.encode(TOKENIZER, t)) for t in texts) / sum(map(len, texts))
    assert rate["val"] < 1.03 * rate["train"]


@pytest.mark.parametrize("language", ["en", "fr", "de", "es"])
def test_a_token_spells_more_than_two_characters(language):
    texts = [d.text for d in corpus.documents("val") if d.language == language]
    assert sum(map(len, texts)) > 2 * sum(len(tk.encode(TOKENIZER, text)) for text in texts)


def test_autotokenizer_reads_the_same_tokenizer():
    other = AutoTokenizer.from_pretrained(str(tk.EMBEDDED))
    assert other.get_vocab() == TOKENIZER.get_vocab()
    assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (0, 1, 2)


def test_a_directory_without_a_tokenizer_is_an_error_naming_it(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        tk.load_tokenizer(tmp_path)


def test_a_broken_file_is_an_error_naming_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json"):
        tk.load_tokenizer(tmp_path)


def test_a_tokenizer_without_image_token_is_an_error(tmp_path):
    made = json.loads((tk.EMBEDDED / "tokenizer.json").read_text("utf-8"))
    made["added_tokens"] = made["added_tokens"][:3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), "utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((tk.EMBEDDED / FILES[1]).read_bytes())
    with pytest.raises(UserError, match="no image token"):
        tk.special_ids(tk.load_tokenizer(tmp_path))


def changed(tmp_path, change):
    """The embedded tokenizer with another tokenizer.json."""
    made = json.loads((tk.EMBEDDED / "tokenizer.json").read_text("utf-8"))
    change(made)
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), "utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((tk.EMBEDDED / FILES[1]).read_bytes())
    return tk.load_tokenizer(tmp_path)


def test_ids_beyond_the_vocabulary_are_an_error_however_few_there_are(tmp_path):
    def move(made):
        words = made["model"]["vocab"]
        words[max(words, key=words.get)] = 5000

    def move_marker(made):
        made["added_tokens"][3]["id"] = 5000

    tk.check_tokenizer(TOKENIZER, 4096)
    with pytest.raises(UserError, match="ids up to 4095, .* vocabulary 4095"):
        tk.check_tokenizer(TOKENIZER, 4095)
    with pytest.raises(UserError, match=f"{tmp_path}: .* vocabulary 4096"):
        tk.check_tokenizer(changed(tmp_path, move), 4096)
    with pytest.raises(UserError, match="tokenizer.json: '<image>' cannot have the id 5000"):
        changed(tmp_path, move_marker)


WORDS = {tk.BOS: 0, tk.EOS: 1, tk.PAD: 2, "a": 3, "b": 4, tk.IMAGE: 5}


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
        {
            "type": "WordPiece",
            "vocab": WORDS,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {
            "type": "Unigram",
            "vocab": [[word, 0.0] for word in WORDS],
            "unk_id": None,
            "byte_fallback": False,
        },
        {"type": "BPE", "vocab": WORDS, "merges": []},
    ],
    ids=lambda model: model["type"],
)
def test_a_tokenizer_that_cannot_spell_every_text_is_an_error(tmp_path, model):
    def change(made):
        made["model"] = model
        made["added_tokens"][3]["id"] = WORDS[tk.IMAGE]

    tokenizer = changed(tmp_path, change)
    with pytest.raises(UserError, match=f"{tmp_path}: the tokenizer (cannot encode|drops)"):
        tk.check_tokenizer(tokenizer, 4096)


def test_padding_and_truncation_that_a_file_asks_for_are_switched_off(tmp_path):
    padding = {
        "strategy": {"Fixed": 300},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": tk.PAD,
    }
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tokenizer = changed(tmp_path, lambda made: made.update(padding=padding, truncation=truncation))
    text = "Some words of a longer text."
    assert tk.encode(tokenizer, text) == tk.encode(TOKENIZER, text)


@pytest.mark.slow
def test_the_command_makes_the_files_and_never_overwrites(tmp_path):
    command = [sys.executable, "-m", "deepsynth_min.tokenizer", "--out", str(tmp_path)]
    assert subprocess.run(command).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    (tmp_path / FILES[0]).unlink()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith("error: ") and not (tmp_path / FILES[0]).exists()


@pytest.mark.parametrize("module", [tokenizer_command, corpus_command])
@pytest.mark.parametrize(
    "arguments", [[], ["--no-such"], ["--out", "a\0b"], ["--out", "x\ny" + "x" * 3000]]
)
def test_a_wrong_argument_is_one_line(tmp_path, monkeypatch, capsys, module, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    assert module.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 1200
