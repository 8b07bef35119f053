"""The families of embedded documents, by name.

In: a family, a split and a seed. Out: its Documents.

The one idea: `embedded:FAMILY` is a data set like any other. `embedded` alone names the reports,
the family that tiny-reader has learned from.
"""

from ..errors import UserError
from . import documents as reports, notices
from .documents import Document

FAMILIES = {"reports": reports.documents, "notices": notices.documents}
EMBEDDED = "embedded"


def family_of(name: str) -> str | None:
    """embedded:notices -> notices, embedded -> reports; None for what names no embedded documents.
    Raises UserError for a family that there is not."""
    word, colon, family = name.partition(":")
    if word != EMBEDDED or colon and not family:
        return None
    if colon and family not in FAMILIES:
        known = " and ".join(f"{EMBEDDED}:{known}" for known in FAMILIES)
        raise UserError(f"{name}: no such embedded documents; there are {known}")
    return family or "reports"


def documents(family: str, split: str, seed: int = 0) -> list[Document]:
    """The documents of a family: the same for the same split ("train" or "val") and seed."""
    return FAMILIES[family](split, seed)
