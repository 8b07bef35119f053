"""What must not change when a run is resumed, and whether it has.

In: settings, rows, a checkpoint's training.json. Out: what of them a checkpoint writes down; a
UserError with every difference in one sentence.

The one idea: a resumed run is the same run. settings.py says of each setting whether it must stay
(`fixed`). Of models, data, adapters and fonts the content must stay and the name may change: a base
that has moved is the same base (of data files, `signature` in data/rows.py says what is compared).
Checkpoints of before write down less; the rest is in the config.toml of their run, and what is in
neither is not compared.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..config_file import is_run, read
from ..data.sources import Data
from ..errors import UserError, one_line
from ..files.download import is_hub_id
from ..model.shape.presets import PRESETS, find_checkpoint
from ..model.weights import stored
from ..options import option_of
from ..pages import vary
from ..pages.fonts.font_file import font_digest
from ..settings import CONCERNS, Settings
from ..training.build import base_of
from ..training.checkpoint import read_facts
from ..tuning.adapter import CONFIG, TENSORS, base_digest

FIXED = [f.name for c in CONCERNS.values() for f in fields(c) if f.metadata["is_fixed"]]
# What is compared by content -> the settings that name it, and what to call it.
CONTENTS = {
    "base": (("model", "revision"), "weights"),
    "tokenizer": (("model", "revision"), "tokenizer or configuration"),
    "adapter": (("adapter",), "content"),
    "fonts": (("main_font", "font"), "content"),
    "vary": (("vary",), "fonts"),
    "data": (("data", "data_revision"), "rows"),
    "held_out": (("val_data", "val_revision"), "rows"),
}
_NAMES = {name for names, _ in CONTENTS.values() for name in names}
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def fixed_settings(settings: Settings) -> dict[str, object]:
    """{setting: value} of those that must stay."""
    values = {name: v for part in vars(settings).values() for name, v in vars(part).items()}
    return {name: values[name] for name in FIXED}


def contents(
    settings: Settings, run: Path, data: Data, base_before: str = ""
) -> dict[str, str | None]:
    """A digest of each of CONTENTS; None: there is none, as of random weights, or it need not be
    known. base_before: the --model of the run that is resumed, "" if none is: another model of the
    hub is not downloaded only to be refused. Raises UserError."""
    name, page = settings.model.model, settings.page
    found = {"data": data.train.signature(), "held_out": data.held_out.signature()}
    if name not in PRESETS and not (is_hub_id(name) and base_before not in ("", name)):
        base = base_of(settings, run)
        found["base"] = base_digest(base)
        found["tokenizer"] = _digest(base / file for file in _FILES)
    if settings.adapter.adapter:
        adapter = find_checkpoint(settings.adapter.adapter)
        found["adapter"] = _digest((adapter / CONFIG, adapter / TENSORS))
    fonts = (page.main_font, *page.font)
    try:
        digests = [font_digest(font) if font else "none" for font in fonts]
        found["fonts"] = " ".join(digests) if any(fonts) else None
    except ValueError as error:
        raise UserError(f"page settings: {error}") from None
    varied = vary.parse(settings.augment.vary, "--vary")
    try:
        found["vary"] = vary.digest(varied)
    except ValueError as error:
        raise UserError(f"--vary: {error}") from None
    return {kind: found.get(kind) for kind in CONTENTS}


def _digest(files: Sequence[Path]) -> str:
    """Of those of the files that are there."""
    whole = hashlib.sha256()
    for file in files:
        if file.is_file():
            whole.update(file.name.encode())
            with open(file, "rb") as content:
                whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


class Before:
    """What a checkpoint, or else the config.toml of its run, says that must not change."""

    def __init__(self, checkpoint: Path):
        """Raises UserError for a training.json that is not as it was written."""
        facts, run = read_facts(checkpoint), checkpoint.absolute().parent.parent
        self.settings, self.contents = facts.get("settings"), facts.get("contents")
        self.global_batch, self.rows = facts.get("global_batch"), facts.get("rows")
        for part in (self.settings, self.contents):
            if part is not None and not isinstance(part, dict):
                raise UserError(f"{checkpoint / 'training.json'}: not as it was written")
        if self.settings is None:  # of before they were written down
            self.settings = _settings_of(run)
        if self.contents is None:
            self.contents = {"data": facts.get("data")}
            if (checkpoint / TENSORS).is_file():
                self.contents["base"] = stored(checkpoint / TENSORS)[1].get("base_digest")

    @property
    def model(self) -> str:
        return str(self.settings.get("model", ""))


def _settings_of(run: Path) -> dict[str, object]:
    """Those in the config.toml of a run; none if it has none, or one that cannot be read."""
    try:
        return read(run / "config.toml", CONCERNS, is_resolved=True) if is_run(run) else {}
    except UserError:
        return {}


def check(
    where: str, before: Before, now: Settings, there: dict, rows: int, global_batch: int
) -> None:
    """Raises UserError for what is not as before, all in one sentence.

    where: what the message begins with; there: `contents` of now; rows: that train.
    """
    settings = fixed_settings(now)
    compared = [name for name in FIXED if name in before.settings and name not in _NAMES]
    found = [
        difference(name, before.settings[name], settings[name])
        for name in compared
        if not _same(before.settings[name], settings[name])
    ]
    alike, changed = set(), []  # settings whose content is the same; what changed under its name
    for kind, (names, what) in CONTENTS.items():
        if kind == "held_out" and not now.data.val_data:
            names = CONTENTS["data"][0]  # they come from there
        then, digest = before.contents.get(kind), there[kind]
        known = [name for name in names if name in before.settings]
        named = [n for n in known if not _named_alike(before.settings[n], settings[n])]
        is_known = bool(then and digest)
        if is_known and then == digest:
            alike |= set(names)
        elif is_known and not named:
            named_now = _shown(names[0], settings[names[0]])
            changed.append(f"{named_now}, of which the {what} have changed")
        elif is_known or not alike.issuperset(names):
            found += [difference(name, before.settings[name], settings[name]) for name in named]
    if before.global_batch not in (None, global_batch):
        given = "--batch-size x --accumulate x processes"
        found.append(f"a global batch ({given}) of {before.global_batch}, now {global_batch}")
    # Rows may be others because of another --limit or --val-fraction, which has been named then.
    if not found and not changed and before.rows not in (None, rows):
        changed.append(f"{before.rows} rows of --data, now {rows}")
    found = list(dict.fromkeys(found or changed))
    if found:
        values = "value" if len(found) == 1 else "values"
        if where.startswith("--resume "):
            values += " (--config FILE reads them from its run's config.toml)"
        raise UserError(
            f"{where}: was trained with {'; '.join(found)}; give the old {values}, or "
            "another --out without --resume to start a new run"
        )


def _same(one: object, other: object) -> bool:
    """Equal values; JSON has lists for tuples."""
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    return one == other


def _named_alike(one: object, other: object) -> bool:
    """Equal values, or two names of one file."""
    names = isinstance(one, str) and isinstance(other, str) and os.path.lexists(other)
    return _same(one, other) or (names and os.path.abspath(one) == os.path.abspath(other))


def difference(name: str, before: object, now: object) -> str:
    """--mode '128', now 'auto'."""
    after = _shown(name, now)
    return f"{_shown(name, before)}, now {after.removeprefix(f'{option_of(name)} ')}"


def _shown(name: str, value: object) -> str:
    """A setting as it is given: --seed 1, --no-kerning, --data a.jsonl b.jsonl."""
    if isinstance(value, bool):
        return option_of(name) if value else option_of(f"no_{name}")
    several = isinstance(value, list | tuple)
    text = " ".join(map(str, value)) or "none" if several else repr(value)
    return f"{option_of(name)} {one_line(text, 200)}"
