"""The families of embedded documents, by name.

In: a family, a split and a seed. Out: its documents.

The one idea: `embedded:FAMILY` is a data set like any other. `embedded` alone names the reports,
the family that tiny-reader has learned from. Needles come in the lengths that their name says, in
characters: `embedded:needles@500,2000,8000`.
"""

from collections.abc import Sequence

from ..errors import UserError
from . import documents as reports, needles, notices
from .documents import Document
from .needles import Needle

FAMILIES = {"reports": reports.documents, "notices": notices.documents}
FAMILIES |= {"needles": needles.documents}
EMBEDDED = "embedded"


def family_of(name: str) -> str | None:
    """embedded:notices -> notices, embedded -> reports; None for what names no embedded documents.
    Raises UserError for a family that there is not."""
    word, colon, family = name.partition(":")
    if word != EMBEDDED or colon and not family:
        return None
    kind, at, lengths = family.partition("@")
    if colon and (kind not in FAMILIES or at and kind != "needles"):
        *known, last = (f"{EMBEDDED}:{known}" for known in FAMILIES)
        there_are = f"there are {', '.join(known)} and {last}"
        raise UserError(f"{name}: no such embedded documents; {there_are}")
    if at:
        needles.lengths_of(lengths, name)
    return family or "reports"


def documents(family: str, split: str, seed: int = 0) -> Sequence[Document | Needle]:
    """The documents of a family: the same for the same split ("train" or "val") and seed. Raises
    UserError for lengths that cannot be."""
    kind, at, lengths = family.partition("@")
    if at:
        return needles.documents(split, seed, needles.lengths_of(lengths, family))
    return FAMILIES[kind](split, seed)
