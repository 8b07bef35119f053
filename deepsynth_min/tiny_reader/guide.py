"""Guided attention: two heads of the last layer are trained to attend to the right visual tokens.

In: a text and an answer that takes words from it; a model's forward pass. Out: where in the text
the answer's letters stand; a loss of two attention heads that are to attend there.

The one idea: that a name in a summary is the mayor's and not the baker's is, for a loss of letters
alone, one nat in a hundred letters, and which of a thousand letters would have told is for the
attention to find out by chance. But where the summary's words stand in the document is known. So
the heads that copy letters from the page when the model reads (in the last layer of the recipe's
run with seed 0 the first two; other seeds may use others, which are trained the same) get a loss
that asks them to attend there when it summarises, as well.

Source: guided alignment, Chen et al. 2016 (arXiv 1607.01628). Used by recipe.py alone; the model
that comes of it is a plain one.
"""

import re
from collections import defaultdict

import torch
from torch import Tensor, nn

from ..model.deepseek_ocr import DeepseekOCR
from ..model.rotary import rotary_tables, rotate

HEADS = 2  # of the last layer, the first ones
WORD = re.compile(r"\w+(?:[.,:]\d+)*")
LONG = 6  # letters of a word that is looked up without its neighbours
COMMON = 4  # a word that stands at more places than that is left out

Targets = list[tuple[int, list[int]]]  # (position, the positions that it is to attend to)


def copied(text: str, answer: str) -> Targets:
    """The letters of an answer that stand in the text: (index in it, indices in the text).

    Of the words with a neighbour that is their neighbour in the text as well; of names, numbers and
    long words without one. `text` itself as answer: each letter where it stands.
    """
    if answer == text:
        return [(i, [i]) for i, letter in enumerate(text) if letter.isalnum()]
    words = [(m.group(), m.start()) for m in WORD.finditer(text)]
    copies = [(m.group(), m.start()) for m in WORD.finditer(answer)]
    at: dict[object, list[int]] = defaultdict(list)
    for i, (word, start) in enumerate(words):
        at[word].append(start)
        if i:
            at[words[i - 1][0], word, 0].append(words[i - 1][1])  # the place of the first
            at[words[i - 1][0], word, 1].append(start)  # of the second
    found = []
    for i, (word, start) in enumerate(copies):
        before = copies[i - 1][0] if i else ""
        after = copies[i + 1][0] if i + 1 < len(copies) else ""
        places = at.get((before, word, 1), []) + at.get((word, after, 0), [])
        if not places and (len(word) >= LONG or word[0].isupper() or word[0].isdigit()):
            places = at.get(word, [])
        if 0 < len(set(places)) <= COMMON:
            places = sorted(set(places))
            found += [(start + k, [place + k for place in places]) for k in range(len(word))]
    return found


class Guide:
    """The loss of the heads in a forward pass of packed samples: `with guide: model.loss(batch)`,
    then once `guide.loss(...)`."""

    def __init__(self, model: DeepseekOCR):
        self.attention = model.model.layers[-1].self_attn
        self.theta = model.config.decoder.rope_theta
        assert not self.attention.shared_kv, "a query's head has a key's head of the same number"
        self.x: Tensor | None = None  # input of the last layer's attention, [1, T, D]

    def __enter__(self) -> None:
        self.hook = self.attention.register_forward_pre_hook(self._keep)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.x = inputs[0]

    def _projected(self, weight: Tensor, x: Tensor, positions: Tensor) -> Tensor:
        """Rotated queries or keys of the guided heads: [n, D] by [H*d, D] -> [HEADS, n, d]."""
        d = self.attention.head_dim
        heads = (x @ weight[: HEADS * d].T).view(1, len(x), HEADS, d).transpose(1, 2)
        return rotate(heads, *rotary_tables(positions[None], d, self.theta))[0]  # [HEADS, n, d]

    def loss(self, lengths: tuple[int, ...], targets: list[Targets]) -> tuple[Tensor | float, int]:
        """The heads' loss, summed over queries, and the number of queries.

        lengths: tokens of each packed sample; targets: of each, its positions counted in it. The
        loss of a query is -log of the attention that it pays to its targets, the mean of the heads.
        """
        (x, self.x), total, count = (self.x, None), 0.0, 0
        for sample, pairs in zip(x[0].split(lengths), targets):
            if not pairs:
                continue
            queries = torch.tensor([query for query, _ in pairs])
            keys = torch.arange(len(sample))
            wanted = torch.zeros(len(pairs), len(sample), dtype=torch.bool)
            for row, (_, positions) in zip(wanted, pairs):
                row[positions] = True
            q = self._projected(self.attention.q_proj.weight, sample[queries], queries)
            k = self._projected(self.attention.k_proj.weight, sample, keys)
            scores = q @ k.transpose(1, 2) / self.attention.head_dim**0.5  # [HEADS, queries, keys]
            scores = scores.masked_fill(keys > queries[:, None], -torch.inf)
            on_targets = scores.masked_fill(~wanted, -torch.inf).logsumexp(-1)
            log_attention = on_targets - scores.logsumexp(-1)  # [HEADS, queries]
            total, count = total - log_attention.mean(0).sum(), count + len(pairs)
        return total, count
