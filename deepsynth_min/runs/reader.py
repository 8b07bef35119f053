"""A model that answers documents: what generate prints, and what the page to try it on shows.

In: an opened model and rows. Out: prompts, answers, or an answer piece by piece; what an answer
costs.

The one idea: a document becomes a prompt as it did in training, by `SampleBuilder.prompt`.
"""

import sys
from collections.abc import Iterator

import torch
from tqdm import tqdm

from ..data.row import Row, TooLong
from ..data.samples import Sample, collate
from ..data.tokenizer import decode, ids_of
from ..errors import number_of, one_line
from ..model.generation import Answer, generate, tokens
from ..pages.scripts import complaints
from .open_model import OpenModel


def warn(text: str) -> None:
    tqdm.write(f"warning: {one_line(text)}", file=sys.stderr)


class Reader:
    """A model that answers rows."""

    def __init__(self, opened: OpenModel):
        self.opened, self.model, self.settings = opened, opened.model, opened.settings
        self.builder, self.device = opened.builder, opened.world.device
        self.allowed = ids_of(self.builder.tokenizer, self.settings.generation.repeat_allow)

    def prompt(self, row: Row) -> Sample:
        """A document as a prompt; warns of characters that are not drawn as they should.

        Raises RowError, TooLong if it fills the model's context, so that there could be no answer.
        """
        sample, context = self.builder.prompt(row), self.builder.context
        if len(sample.ids) >= context:
            raise TooLong(
                row.where,
                f"{number_of(len(sample.pages), 'page')} ({sample.visual} visual tokens) and the "
                f"instruction make {len(sample.ids)} tokens; the model's context is {context} "
                "(--max-pages N --overflow truncate|shrink limits the pages)",
            )
        if sample.missing:
            why = "; ".join(complaints([row.text], self.builder.style))
            some = number_of(sample.missing, "character")
            warn(f"{row.where}: {some} could not be drawn as they should: {why}")
        return sample

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, with the model's markers, without what frames a sequence."""
        return decode(self.builder.tokenizer, ids)

    def answers(self, samples: list[Sample], numbers: list[int]) -> list[Answer]:
        """Of a batch of prompts; `numbers` of the inputs seed the sampling of each."""
        batch = collate(samples, self.builder.special).to(self.device)
        options, seed = self.settings.generation, self.settings.optim.seed
        with self.opened.precision():
            return generate(self.model, batch, options, seed, numbers, self.allowed)

    def loss(self, sample: Sample) -> float:
        """Nats per token of a sample's answer."""
        batch = collate([sample], self.builder.special).to(self.device)
        with self.opened.precision(), torch.no_grad():
            total, count = self.model.loss(batch)
        return float(total) / count

    def stream(self, sample: Sample) -> Iterator[tuple[str, Answer]]:
        """After each token the text that it adds ("" while a character's bytes are not all there)
        and the answer so far; at the end what is left. Not for beams, which decide at the end."""
        ids, shown, ended = [], 0, False
        batch = collate([sample], self.builder.special).to(self.device)
        options, seed = self.settings.generation, self.settings.optim.seed
        with self.opened.precision():
            for token in tokens(self.model, batch, options, seed, allowed=self.allowed):
                ended = int(token) == self.builder.special.eos
                if ended:
                    break
                ids.append(int(token))
                text = self.decode(ids)
                whole = not text.endswith("\ufffd")
                yield text[shown:] if whole else "", Answer(ids, False)
                shown = len(text) if whole else shown
        yield self.decode(ids)[shown:], Answer(ids, ended)
