"""How alike two texts are, estimated from their sketches."""

import pytest

from deepsynth_min.corpus import documents as corpus
from deepsynth_min.inspection import duplicates

DOCUMENTS = corpus.documents("train")


def test_the_similarity_of_sketches_is_near_that_of_the_sets():
    text = " ".join(d.text for d in DOCUMENTS[:12])
    for kept in (1.0, 0.9, 0.7, 0.4):
        other = text[: int(kept * len(text))] + " ".join(d.text for d in DOCUMENTS[40:44])
        sets = [
            {clean[i : i + 8] for i in range(len(clean) - 7)}
            for clean in map(duplicates.normalised, (text, other))
        ]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        one, two = map(duplicates.sketch, (text, other))
        assert duplicates.similarity(one, two[None])[0] == pytest.approx(exact, abs=0.13)
