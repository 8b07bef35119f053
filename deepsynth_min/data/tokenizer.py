"""Text <-> token ids: the embedded tokenizer, loading of any other, and `encode` for users' text.

In: a directory with tokenizer.json (ours is embedded_tokenizer/, or an official DeepSeek one). Out:
a transformers tokenizer for samples.py and generate.py, and lists of ids.

The embedded one is a byte-level BPE trained on the training split of the embedded corpus, its ids
laid out like DeepSeek-OCR's: 0, 1, 2 are begin, end and padding, then come the 256 bytes and the
merges, and `<image>`, one per visual token, is the last. Digits are never merged, so that a model
reads a number figure by figure; every byte has an id, so any text survives encoding and decoding.

The one idea: text is never syntax. A document that contains "<image>" holds seven characters, and
`encode` yields ids that spell them, never the id of the marker. It cuts such text inside the marker
and encodes the parts, which needs no switch on the tokenizer: threads may share one. An answer may
hold markers of its own, those of layouts and tables, but none that frames a sequence.

`python -m deepsynth_min.tokenizer` makes the embedded files again.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ..corpus import documents as corpus
from ..errors import UserError, read_json

EMBEDDED = Path(__file__).parent / "embedded_tokenizer"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
VOCABULARY = 4096
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE = "<image>"


@dataclass(frozen=True)
class SpecialIds:
    """The ids with which samples.py frames a sequence."""

    bos: int
    eos: int
    pad: int
    image: int


def load_tokenizer(directory: Path | str | None = None) -> Any:
    """The tokenizer in `directory`; without one, the embedded.

    tokenizer.json is taken as it stands, whatever class tokenizer_config.json names: the official
    one says Llama, whose word splitting is not DeepSeek's.
    Raises UserError if there is no such file or it cannot be read.
    """
    directory = Path(directory or EMBEDDED)
    path = directory / "tokenizer.json"
    if not os.path.isfile(path):
        raise UserError(f"{directory}: no tokenizer.json in it")
    content = read_json(path)
    from transformers import PreTrainedTokenizerFast  # seconds, for which --help need not wait

    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        loaded.backend_tokenizer.no_padding()  # such a file may ask for both
        loaded.backend_tokenizer.no_truncation()
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
    except Exception as error:  # tokenizers raises nothing more specific for a malformed file
        raise UserError(f"{path}: {error}") from None
    for text, number in added.items():  # tokenizers silently moves one that leaves a gap
        if loaded.backend_tokenizer.token_to_id(text) != number:
            raise UserError(f"{path}: {text!r} cannot have the id {number}")
    return loaded


# A little of what texts hold: control characters, accents, scripts, symbols, half of an emoji.
PROBE = "".join(map(chr, range(1, 0x250))) + "Яשع日本語한ไ‑–€\u200b\u2028\ufffd\ue000😀🏽\U0010fffd"


def check_tokenizer(tokenizer: Any, vocabulary: int) -> None:
    """Raises UserError unless it turns any text, all of it, into ids below `vocabulary`."""
    name = tokenizer.name_or_path
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary:
        raise UserError(
            f"{name}: the tokenizer has ids up to {largest}, too many for the model's "
            f"vocabulary {vocabulary}"
        )
    try:
        encode(tokenizer, PROBE)
        dropped = [c for c in PROBE if c.isalnum() and not encode(tokenizer, c)]
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{name}: the tokenizer cannot encode every text ({error})") from None
    if dropped:
        raise UserError(f"{name}: the tokenizer drops characters: {''.join(dropped[:20])}")


def special_ids(tokenizer: Any) -> SpecialIds:
    """Raises UserError if the tokenizer lacks one of them."""
    image = tokenizer.get_added_vocab().get(IMAGE)
    ids = SpecialIds(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, image)
    missing = [name for name, value in vars(ids).items() if value is None]
    if missing:
        raise UserError(f"{tokenizer.name_or_path}: no {', '.join(missing)} token in the tokenizer")
    return ids


@lru_cache(maxsize=16)
def _markers(tokenizer: Any, frame_only: bool) -> re.Pattern:
    """Finds every added token in a text, or those of the frame (begin, end, padding, image), the
    longest first where one begins with another.

    A marker of one character cannot be cut and stays what it is; no known tokenizer has any.
    """
    added = [text for text in tokenizer.get_added_vocab() if len(text) > 1]
    if frame_only:
        frame = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, IMAGE)
        added = [text for text in added if text in frame]
    return re.compile("|".join(re.escape(text) for text in sorted(added, key=len, reverse=True)))


Markers = Literal["all", "own", "none"]


def encode(tokenizer: Any, text: str, markers: Markers = "none") -> list[int]:
    """The ids of `text`, nothing added before or after.

    markers: which of the tokenizer's added tokens stand for themselves. "all": of an instruction,
    which may hold <|grounding|>; "own": of an answer, where those of layouts and tables
    (<|ref|>, <td>) do and those that frame a sequence do not; "none": of a document, where each is
    spelled out like other words.
    """
    backend = tokenizer.backend_tokenizer  # transformers' own encode sets options: not for threads
    if markers == "all":
        return backend.encode(text, add_special_tokens=False).ids
    pattern = _markers(tokenizer, markers == "own")
    cuts, found = [0], pattern.search(text)
    while found and found[0]:
        cuts.append(found.start() + 1)
        found = pattern.search(text, found.start() + 1)
    parts = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)])]
    return [id for part in parts for id in backend.encode(part, add_special_tokens=False).ids]


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of an answer: with its markers, without what frames a sequence."""
    frame = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    frame.add(tokenizer.get_added_vocab().get(IMAGE))
    kept = [id for id in ids if id not in frame]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def ids_of(tokenizer: Any, tokens: Iterable[str]) -> list[int]:
    """The ids of tokens by their text, also of several with commas between. Raises UserError."""
    names = [name for token in tokens for name in token.split(",") if name]
    found = {name: encode(tokenizer, name, "all") for name in names}
    for name, ids in found.items():
        if len(ids) != 1:
            raise UserError(f"--repeat-allow {name}: is {len(ids)} tokens, not one")
    return [ids[0] for ids in found.values()]


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE of VOCABULARY ids from the training split, the same at every call."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (part for d in corpus.documents("train") for part in (d.text, d.summary))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    assert tokenizer.token_to_id(IMAGE) == VOCABULARY - 1, tokenizer.get_vocab_size()
    return tokenizer


# What of two or three bytes is one letter to `letter_tokenizer`: Latin-1 and a few more.
LETTERS_BEYOND_ASCII = "".join(map(chr, range(0xA0, 0x100))) + "Œœ–—‘’“”„…\u202f€"


def letter_tokenizer() -> Tokenizer:
    """A byte-level BPE whose only merges make one letter of its bytes: a token is a character of
    western European text, or a byte of any other. For the preset tiny-reader."""
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), {}
    for letter in LETTERS_BEYOND_ASCII:
        first, *others = bytes_of.pre_tokenize_str(letter)[0][0]
        for other in others:
            merges[first, other] = first = first + other
    names = [BOS, EOS, PAD, *alphabet, *merges.values()]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (BOS, EOS, PAD, IMAGE)]
    )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """File name -> content, as a model directory holds them."""
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        **names,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    contents = json.loads(tokenizer.to_str()), config, names
    return {
        name: json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        for name, value in zip(FILES, contents)
    }
