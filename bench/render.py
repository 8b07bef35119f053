"""Pages per second: ours, other libraries', and lower bounds, on the same documents in one run.

    python bench/render.py                         # 8 documents, three minutes
    python bench/render.py --docs 64 --rounds 9 --font DejaVuSans.ttf --cjk-font NotoSansCJK.otf
    python bench/render.py --soak 1000000          # memory over so many pages

Documents are made here: English prose with real words' frequencies, 2,000 to 14,000 characters.
Everything that is compared takes its turn in each round; medians of the rounds are compared. Ours
draws a document at a time into memory that is reused, as the peers do; `own memory` takes pages
from the renderer's pool. The floors (lower bounds): filling the pages (memset), copying pages
(memcpy), and filling plus copying each glyph to a place known beforehand (blit), which is drawing
without layout. The targets are those of the peers that are installed; Pillow, OpenCV 5, skia-python
and pycairo are no dependencies. Best on an idle machine.

Peers are measured with two fonts, for Pillow has each glyph hinted anew: it runs the font's program
for fitting outlines to pixels, which we leave out. The embedded Noto Sans has a long one, made by
ttfautohint, and against it we look best; with FiraGO, or DejaVu Sans (`--font`), whose programs are
short, the ratio is the fair one, and the one to quote. What FreeType takes for a glyph with and
without the program is printed beside it.
"""

import argparse
import os
import resource
import tempfile
import time

import numpy as np
import render_peers
from common import environment, finish, median, table
from prose import documents

from deepsynth_min.pages import PageStyle
from deepsynth_min.pages.fonts.font_file import EMBEDDED, font_bytes
from deepsynth_min.pages.glyphs import GlyphStore
from deepsynth_min.pages.renderer import Renderer, _Layout

MARGIN, LINE_HEIGHT = 40, 1.2
TARGETS = {"Pillow, cached widths": (100, 250), "OpenCV FontFace": (8, 18)}  # at least, aim
FLOOR_TARGET = (2.5, 1.5)  # times the blit floor at most, aim


def timed(contenders: dict, rounds: int) -> dict[str, float]:
    """Median seconds of each, all taking turns. A turn lasts 0.1 s at least, by repeating; the
    first does not count; whoever needs more than 3 s takes part in the first round only."""
    times, repeats = {name: [] for name in contenders}, dict.fromkeys(contenders, 1)
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            if times[name] and times[name][0] > 3:
                continue
            started = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds = (time.perf_counter() - started) / repeats[name]
            repeats[name] = max(1, int(0.1 / seconds))
            if turn:
                times[name].append(seconds)
    return {name: median(values) for name, values in times.items()}


class Ours:
    """Our renderer, its parts and its floors, over the same texts."""

    def __init__(self, texts: list[str], style: PageStyle):
        self.texts, self.renderer = texts, Renderer(style)
        layouts = [_Layout(self.renderer._current(), [text], 1) for text in texts]
        counts = [layout.plan.number_pages() for layout in layouts]
        self.pages, self.characters = sum(counts), sum(map(len, texts))
        self.out = np.zeros((max(counts), style.height, style.width), np.uint8)
        self.parts = [self.out[:count] for count in counts]
        self.replays = [layout.plan.replay() for layout in layouts]

    def draw(self) -> None:
        for text in self.texts:
            self.renderer.render_pages(text, out=self.out)

    def pooled(self) -> None:
        for text in self.texts:
            self.renderer.render_pages(text)

    def memset(self) -> None:
        for part in self.parts:
            part.fill(255)

    def memcpy(self) -> None:
        for part in self.parts:
            for page in part:
                np.copyto(page, self.out[0])

    def blit(self) -> None:
        for replay in self.replays:
            replay.draw(self.out)


def against_peers(texts, font_file: str, size: int, rounds: int) -> dict:
    """One page size, one font size, everybody; returns seconds per run of all texts."""
    step = round(LINE_HEIGHT * size)
    style = PageStyle(margin=MARGIN, font_size=size, line_height=LINE_HEIGHT, main_font=font_file)
    ours = Ours(texts, style)
    peers = render_peers.installed(font_file, size, style.width, MARGIN, step)
    contenders = {
        "ours": ours.draw,
        "ours, own memory": ours.pooled,
        "floor: memset": ours.memset,
        "floor: memcpy": ours.memcpy,
        "floor: memset + blit": ours.blit,
    }
    contenders |= {name: lambda peer=peer: peer(texts) for name, peer in peers.items()}
    seconds = timed(contenders, rounds)
    rows = [
        (
            name,
            f"{ours.pages / s:,.0f}",
            f"{1e6 * s / ours.pages:,.1f}",
            f"{ours.characters / s / 1e6:,.2f}",
            f"{s / seconds['ours']:,.2f}",
        )
        for name, s in sorted(seconds.items(), key=lambda pair: pair[1])
    ]
    print(f"\n{size} px on 1024 px pages, {ours.pages} pages, {ours.characters:,} characters")
    print(table(rows, ("one thread", "pages/s", "us/page", "M characters/s", "x ours")))
    return {name: ours.pages / s for name, s in seconds.items()}


def grid(texts, font_file: str, rounds: int) -> list[dict]:
    """Ours alone over page and font sizes."""
    results, rows = [], []
    for side in (512, 640, 1024, 1280):
        for size in (8, 10, 12, 16, 20, 24):
            style = PageStyle(
                width=side,
                height=side,
                margin=MARGIN * side // 1024,
                font_size=size,
                line_height=LINE_HEIGHT,
                main_font=font_file,
            )
            ours = Ours(texts, style)
            seconds = timed({"ours": ours.draw, "blit": ours.blit}, rounds)
            result = {
                "side": side,
                "font_size": size,
                "pages_per_s": ours.pages / seconds["ours"],
                "characters_per_s": ours.characters / seconds["ours"],
                "x_blit_floor": seconds["ours"] / seconds["blit"],
            }
            results.append(result)
            rows.append(
                (
                    f"{side} px, {size} px",
                    f"{result['pages_per_s']:,.0f}",
                    f"{result['characters_per_s'] / 1e6:,.1f}",
                    f"{result['x_blit_floor']:.2f}",
                )
            )
    print("\n" + table(rows, ("page, font", "pages/s", "M characters/s", "x blit floor")))
    return results


def threads(texts, font_file: str, rounds: int) -> dict:
    """One batch of all texts into memory that is reused, by number of threads."""
    style = PageStyle(margin=MARGIN, line_height=LINE_HEIGHT, main_font=font_file)
    renderer, cores = Renderer(style), len(os.sched_getaffinity(0))
    # A batch as large as those that threads are for: starting one costs about as much as a page.
    texts = texts * max(1, 500 // sum(map(len, renderer.render_batch(texts))))
    pages = sum(map(len, renderer.render_batch(texts)))
    out = np.zeros((pages, style.height, style.width), np.uint8)
    counts = sorted({1, 2, cores} & set(range(1, cores + 1)))
    runs = {n: lambda n=n: renderer.render_batch(texts, out=out, threads=n) for n in counts}
    seconds = timed(runs, 3 * rounds)
    rows = [
        (f"{n} threads", f"{pages / seconds[n]:,.0f}", f"{seconds[1] / seconds[n]:.2f}")
        for n in counts
    ]
    print("\n" + table(rows, (f"one batch of {pages} pages", "pages/s", "x one thread")))
    return {n: pages / seconds[n] for n in counts}


def cold_start(cjk_font: str) -> dict:
    """A new renderer's first page: 5,000 distinct glyphs, CJK if a font is given."""
    style = PageStyle(main_font=cjk_font)
    chain = GlyphStore(style).chain
    points = range(0x4E00, 0x9FFF) if cjk_font else range(0x21, 0x20000)
    text = "".join(
        [
            chr(p)
            for p in points
            if not 0xD800 <= p < 0xE000 and chain.find(p) and chr(p).isprintable()
        ][:5000]
    )
    started = time.perf_counter()
    Renderer(style).render_pages(text)
    seconds = time.perf_counter() - started
    glyphs = "CJK" if cjk_font else "embedded (no --cjk-font)"
    print(
        f"\ncold start: {len(text)} distinct {glyphs} glyphs in {seconds:.3f} s, "
        f"{1e6 * seconds / len(text):.0f} us each"
    )
    return {"glyphs": len(text), "kind": glyphs, "seconds": seconds}


def compare(texts, folder: str, font: str, rounds: int) -> dict:
    """Against all peers, with the embedded font and with one that is cheap to hint."""
    fonts, found, rows = {"embedded Noto Sans": EMBEDDED[0], "FiraGO": "figo"}, {}, []
    if font:
        fonts = {"embedded Noto Sans": EMBEDDED[0], os.path.basename(font): font}
    for name, source in fonts.items():
        path = os.path.join(folder, "font.ttf")
        with open(path, "wb") as file:
            file.write(font_bytes(source))
        print(f"\n{name}")
        speeds = {size: against_peers(texts, path, size, rounds) for size in (16, 12)}
        glyph = render_peers.glyph_times(path, 16)
        ratio = speeds[16]["ours"] / speeds[16].get("Pillow, cached widths", float("nan"))
        found[name] = {"pages_per_s": speeds, "us_per_glyph": glyph, "targets": judge(speeds)}
        rows.append((name, *(f"{us:.1f}" for us in glyph.values()), f"{ratio:.0f}"))
    header = ("16 px", "FreeType, us/glyph hinted", "unhinted", "ours x Pillow")
    print("\n" + table(rows, header))
    print("Pillow hints every glyph that it draws: the ratios differ by what that takes.")
    return found


def judge(speeds: dict[int, dict]) -> list[dict]:
    """Each target with what was measured."""
    found = []
    for size, speed in speeds.items():
        for name, (low, aim) in TARGETS.items():
            if name in speed:
                ratio = speed["ours"] / speed[name]
                bar = {"at_least": low, "aim": aim, "met": ratio >= low}
                found.append({"font_size": size, "against": name, "ratio": ratio, **bar})
        high, aim = FLOOR_TARGET
        ratio = speed["floor: memset + blit"] / speed["ours"]
        bar = {"at_most": high, "aim": aim, "met": ratio <= high}
        found.append({"font_size": size, "against": "memset + blit", "ratio": ratio, **bar})
    rows = [
        (
            f"{t['against']}, {t['font_size']} px",
            f"{t['ratio']:.2f}",
            f"{'>=' if 'at_least' in t else '<='} {t.get('at_least', t.get('at_most'))}",
            t["aim"],
            "met" if t["met"] else "MISSED",
        )
        for t in found
    ]
    print("\n" + table(rows, ("target", "ratio", "bar", "aim", "")))
    return found


def soak(pages: int) -> dict:
    """Resident memory while drawing `pages` pages of 1024 px from ever new texts."""
    texts, renderer, done, seen = documents(64), Renderer(PageStyle(margin=MARGIN)), 0, []
    out, started = np.zeros((16, 1024, 1024), np.uint8), time.perf_counter()
    while done < pages:
        for text in texts:
            done += len(renderer.render_pages(f"{done} {text}", out=out))
        if not seen or done >= len(seen) * pages / 10:
            with open("/proc/self/statm") as statm:
                seen.append(int(statm.read().split()[1]) * resource.getpagesize() // 1024)
            speed = done / (time.perf_counter() - started)
            print(f"{done:>10,} pages  {seen[-1]:>9,} KiB  {speed:,.0f} pages/s", flush=True)
    finish({"bench": "render soak", **environment("numpy"), "pages": done, "resident_kib": seen})
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--docs", type=int, default=8, help="documents (8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument("--font", default="", help="second font of the peers (FiraGO)")
    parser.add_argument("--cjk-font", default="", help="font file for the cold start")
    parser.add_argument(
        "--soak", type=int, default=0, help="watch memory over so many pages instead"
    )
    given = parser.parse_args()
    if given.soak:
        soak(given.soak)
        return
    texts = documents(given.docs)
    with tempfile.TemporaryDirectory() as folder:
        fonts = compare(texts, folder, given.font, given.rounds)
    finish(
        {
            "bench": "render",
            **environment(
                "numpy", "freetype-py", "pillow", "opencv-python-headless", "skia-python", "pycairo"
            ),
            "documents": given.docs,
            "fonts": fonts,
            "grid": grid(texts, EMBEDDED[0], given.rounds),
            "pages_per_s_by_threads": threads(texts, EMBEDDED[0], given.rounds),
            "cold_start": cold_start(given.cjk_font),
        }
    )


if __name__ == "__main__":
    main()
