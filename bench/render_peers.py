"""Other people's ways to draw text pages, each as it is commonly written, for bench/render.py.

A peer is `peer(texts) -> pages drawn`, made by `make(font_file, size, side, margin, step)`. All
wrap greedily at spaces and draw a line at a time into a page that is reused; all but the first keep
the widths of words, which is kinder to them than most programs are.
"""

import time

import freetype
import numpy as np


def wrap(paragraph: str, width: float, word_width, space: float):
    """Lines of a paragraph, from word widths."""
    line, used = [], 0.0
    for word in paragraph.split(" "):
        wide = word_width(word)
        if line and used + space + wide > width:
            yield " ".join(line)
            line, used = [], 0.0
        used += wide + (space if line else 0)
        line.append(word)
    yield " ".join(line)


def cached(measure):
    """Widths of words, each measured once."""
    widths: dict[str, float] = {}

    def width(word: str) -> float:
        if word not in widths:
            widths[word] = measure(word)
        return widths[word]

    return width


def paged(texts, lines_of, new_page, draw, side: int, margin: int, step: int, up: int) -> int:
    """Draws all lines of all texts; returns the number of pages."""
    pages, last = 0, side - margin - step
    for text in texts:
        y = last + 1
        for paragraph in text.split("\n"):
            for line in lines_of(paragraph):
                if y > last:
                    new_page()
                    pages, y = pages + 1, margin
                draw(line, margin, y + up)
                y += step
    return pages


def pillow_plain(font_file, size, side, margin, step):
    """Pillow with `getlength` of the growing line, as tutorials write it."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_file, size, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("L", (side, side), 255)
    canvas, width = ImageDraw.Draw(image), side - 2 * margin

    def lines_of(paragraph):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                yield line
                longer = word
            line = longer
        yield line

    return lambda texts: paged(
        texts,
        lines_of,
        lambda: canvas.rectangle((0, 0, side, side), fill=255),
        lambda line, x, y: canvas.text((x, y), line, 0, font, "ls"),
        side,
        margin,
        step,
        size,
    )


def pillow_cached(font_file, size, side, margin, step):
    """Pillow with cached word widths."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_file, size, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("L", (side, side), 255)
    canvas, width = ImageDraw.Draw(image), cached(font.getlength)
    return lambda texts: paged(
        texts,
        lambda p: wrap(p, side - 2 * margin, width, width(" ")),
        lambda: canvas.rectangle((0, 0, side, side), fill=255),
        lambda line, x, y: canvas.text((x, y), line, 0, font, "ls"),
        side,
        margin,
        step,
        size,
    )


def opencv(font_file, size, side, margin, step):
    """OpenCV 5's FontFace."""
    import cv2

    cv2.setNumThreads(1)
    face, page = cv2.FontFace(font_file), np.empty((side, side), np.uint8)

    def measure(word):
        return cv2.getTextSize((side, side), word, (0, 0), face, size)[2]

    space = measure("a b") - measure("ab")
    width = cached(measure)
    return lambda texts: paged(
        texts,
        lambda p: wrap(p, side - 2 * margin, width, space),
        lambda: page.fill(255),
        lambda line, x, y: cv2.putText(page, line, (x, y), 0, face, size),
        side,
        margin,
        step,
        size,
    )


def skia(font_file, size, side, margin, step):
    """skia-python, grey page, anti-aliased, unhinted."""
    import skia as sk

    font = sk.Font(sk.Typeface.MakeFromFile(font_file), size)
    font.setHinting(sk.FontHinting.kNone)
    font.setEdging(sk.Font.Edging.kAntiAlias)
    page, paint = np.empty((side, side), np.uint8), sk.Paint(Color=sk.ColorBLACK, AntiAlias=True)
    surface = sk.Surface(page, colorType=sk.ColorType.kGray_8_ColorType)
    width = cached(font.measureText)

    def draw(line, x, y):  # names surface and page, so that both live as long as the peer
        surface.getCanvas().drawString(line, x, y, font, paint)

    return lambda texts: paged(
        texts,
        lambda p: wrap(p, side - 2 * margin, width, width(" ")),
        lambda: page.fill(255),
        draw,
        side,
        margin,
        step,
        size,
    )


def cairo(font_file, size, side, margin, step):
    """pycairo's toy text interface, which takes no file: the system's DejaVu Sans."""
    import cairo as ca

    surface = ca.ImageSurface(ca.FORMAT_A8, side, side)
    context = ca.Context(surface)
    context.select_font_face("DejaVu Sans")
    context.set_font_size(size)
    width = cached(lambda word: context.text_extents(word).x_advance)

    def new_page():
        context.set_operator(ca.OPERATOR_CLEAR)
        context.paint()
        context.set_operator(ca.OPERATOR_OVER)

    def draw(line, x, y):
        context.move_to(x, y)
        context.show_text(line)

    return lambda texts: paged(
        texts,
        lambda p: wrap(p, side - 2 * margin, width, width(" ")),
        new_page,
        draw,
        side,
        margin,
        step,
        size,
    )


PEERS = {
    "Pillow, plain": pillow_plain,
    "Pillow, cached widths": pillow_cached,
    "OpenCV FontFace": opencv,
    "skia-python": skia,
    "pycairo": cairo,
}


def installed(font_file, size, side, margin, step):
    """{name: peer} of those whose library is there; OpenCV from version 5 on has FontFace."""
    found = {}
    for name, make in PEERS.items():
        try:
            found[name] = make(font_file, size, side, margin, step)
        except (ImportError, AttributeError):
            continue
    return found


def glyph_times(font_file, size, rounds=7):
    """Microseconds in which FreeType makes a glyph's image: with the font's own hinting program,
    as Pillow has it done for every glyph that it draws, and without.

    The CPU's time, the best of the rounds; FreeType here is freetype-py's, not Pillow's own copy.
    """
    face, text = freetype.Face(font_file), "the quick brown fox jumps over the lazy dog" * 10
    face.set_pixel_sizes(0, size)
    found = {}
    for name, flags in (("hinted", 0), ("unhinted", freetype.FT_LOAD_NO_HINTING)):
        times = []
        for _ in range(rounds):
            began = time.process_time()
            for character in text:
                face.load_char(character, flags | freetype.FT_LOAD_RENDER)
            times.append(time.process_time() - began)
        found[name] = 1e6 * min(times) / len(text)
    return found
