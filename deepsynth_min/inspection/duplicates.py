"""Rows that say the same: keys of equal ones, and sketches of those that are nearly equal.

In: texts, or the bytes of images. Out: a 64-bit key; or a sketch, uint32 [128], whatever the length
of the text.

The one idea: MinHash. A text is the set of its shingles, the pieces of 8 characters. Put the
shingles of two texts into a random order: the first one of all is in both texts with probability
|A and B| / |A or B|, their Jaccard similarity. A sketch holds the first one in each of 128 orders,
so the share in which two sketches agree estimates the similarity to +-0.04 (standard deviation).

Sources: Broder 1997 (shingles, resemblance of documents), Broder et al. 2000 (min-wise independent
permutations).
"""

import hashlib
import unicodedata

import numpy as np

SHINGLE = 8  # characters; no words, which not every script has
ORDERS = 128
NEAR = 0.8  # similarity from which two texts count as near duplicates
SHORTEST = 64  # characters; what is shorter is compared by key alone
_PIECE = 4096  # shingles that are put into their orders at once: 4 MiB each time
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SEEDS = np.random.default_rng(0).integers(0, 2**64, (2, ORDERS, 1), np.uint64)
_SEEDS[1] |= np.uint64(1)


def normalised(text: str) -> str:
    """Without what makes no difference to a reader: case, spacing, compatibility forms."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def key(*parts: str | bytes) -> int:
    """64 bits that are equal for equal parts, and for others by chance alone."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(content) + content)
    return int.from_bytes(digest.digest(), "little")


def shingles(text: str) -> np.ndarray:
    """Hashes of the pieces of SHINGLE characters of a normalised text: uint64 [n]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    count = max(0, len(points) - SHINGLE + 1)
    out = np.zeros(count, np.uint64)
    for offset in range(SHINGLE):
        out = out * _ODD + points[offset : offset + count]
    out ^= out >> np.uint64(29)
    return out * _ODD


def sketch(text: str) -> np.ndarray | None:
    """uint32 [ORDERS]; None for a text that is too short to be like another by more than chance."""
    text = normalised(text)
    if len(text) < SHORTEST:
        return None
    hashes, least = shingles(text), np.full(ORDERS, 2**32 - 1, np.uint32)
    for start in range(0, len(hashes), _PIECE):
        places = (hashes[start : start + _PIECE] ^ _SEEDS[0]) * _SEEDS[1]  # [ORDERS, n]
        least = np.minimum(least, (places >> np.uint64(32)).min(1).astype(np.uint32))
    return least


def similarity(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of a sketch to others [H, ORDERS]: float64 [H]."""
    return (others == one).mean(1)
