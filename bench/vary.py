"""What a page style for every sample costs: pages per second with --vary, against kept styles.

    python bench/vary.py                        # 64 documents, pages of 1024 px, half a minute
    python bench/vary.py --side 640 --rounds 30

The same documents in the same drawn styles, twice: `kept`, each with a sample builder made for its
style beforehand, and `drawn`, as a run does it. What is compared is pages alone (`renderer`) and
batches as a run makes them, tokens included (`batches`). Letters have been drawn before, in both;
`first time` is what drawing them took. One thread; processor time, the least of the rounds, so that
other work on the machine counts little.
"""

import argparse
import time
from dataclasses import replace

from common import environment, finish, table
from prose import documents

from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.pages import renderer
from deepsynth_min.pages.glyphs import _store
from deepsynth_min.settings import Settings

PLACES = "font_size=9:16,line_height=1.0:1.6,margin=16:64,font=notos|figo,columns=1|2"
SPECS = {"one style": "font_size=12", "places": PLACES}
SPECS["places and greys"] = PLACES + ",invert=0.1,ink=0:90,paper=200:255"
BATCH = 8


class Rows:
    """Documents as rows, in batches, by a builder for all or by one for each."""

    def __init__(self, texts: list[str], spec: str, side: int):
        summary = "A sentence that says what the document is about."
        self.rows = [Row(f"row {i}", summary, text) for i, text in enumerate(texts)]
        decoder = replace(PRESETS["tiny"].decoder, max_position_embeddings=10**6)
        config, tokenizer = replace(PRESETS["tiny"], decoder=decoder), load_tokenizer()
        settings = change(Settings(), mode=str(side), vary=(spec,))
        self.builder = SampleBuilder(settings, config, tokenizer)
        self.styles = [self.style(i) for i in range(len(texts))]
        plain, self.kept = change(settings, vary=()), []
        for style in self.styles:
            self.kept.append(SampleBuilder(plain, config, tokenizer))
            self.kept[-1].style = style
        self.renderers = [renderer.Renderer(style) for style in self.styles]

    def style(self, i: int):
        return self.builder.style.with_look(self.builder.look(i))

    def render_kept(self) -> int:
        return sum(len(r.render_pages(row.text)) for r, row in zip(self.renderers, self.rows))

    def render_drawn(self) -> None:
        renderer._renderer.cache_clear()  # as if each style came for the first time
        for i, row in enumerate(self.rows):
            renderer.render_pages(row.text, self.style(i))

    def batches(self, is_drawn: bool) -> None:
        if is_drawn:
            renderer._renderer.cache_clear()
        for start in range(0, len(self.rows), BATCH):
            numbers = range(start, min(start + BATCH, len(self.rows)))
            if is_drawn:
                looks = [self.builder.look(i) for i in numbers]
                made = [self.builder(self.rows[i], look) for i, look in zip(numbers, looks)]
            else:
                made = [self.kept[i](self.rows[i]) for i in numbers]
            collate(made, self.builder.special, pack=True)


def least(contenders: dict, rounds: int) -> dict[str, float]:
    """Seconds of processor time of each at its best, all taking turns; the first does not count."""
    times = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    return {name: min(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--docs", type=int, default=64, help="documents (64)")
    parser.add_argument("--side", type=int, default=1024, help="px of a page (1024)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender (15)")
    given = parser.parse_args()
    texts, rows, results = documents(given.docs), [], []
    for name, spec in SPECS.items():
        _store.cache_clear()
        form = Rows(texts, spec, given.side)
        started = time.perf_counter()
        pages = form.render_kept()
        first = time.perf_counter() - started
        contenders = {
            "kept": form.render_kept,
            "drawn": form.render_drawn,
            "kept in batches": lambda form=form: form.batches(False),
            "drawn in batches": lambda form=form: form.batches(True),
        }
        speed = {k: pages / s for k, s in least(contenders, given.rounds).items()}
        cost = {
            "renderer": 1 - speed["drawn"] / speed["kept"],
            "batches": 1 - speed["drawn in batches"] / speed["kept in batches"],
        }
        result = {"spec": spec, "pages": pages, "pages_per_s": speed, "cost": cost}
        results.append(result | {"first_s": first, "stores": _store.cache_info().currsize})
        figures = [f"{speed[k]:,.0f}" for k in contenders]
        costs = [f"{share:.1%}" for share in cost.values()]
        rows.append((name, pages, *figures, *costs, f"{first:.2f} s"))
    heads = ("pages/s", "pages", "kept", "drawn", "kept, batches", "drawn, batches")
    print("\n" + table(rows, (*heads, "less, renderer", "less, batches", "first time")))
    finish({"bench": "vary", **environment("numpy"), "side": given.side, "results": results})


if __name__ == "__main__":
    main()
