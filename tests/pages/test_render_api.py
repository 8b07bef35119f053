"""One renderer, many users: batches, threads, forks, pickles, caches, memory; and the previews."""

import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import threading
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from reference_renderer import embedded

from deepsynth_min.pages import glyphs, renderer as renderer_module
from deepsynth_min.pages.renderer import PageStyle, Renderer, render_batch, render_pages
from deepsynth_min.render import main, parser

STYLE = PageStyle(width=160, height=90, margin=5, font_size=11)
TEXTS = [
    f"Text {i}: " + "wörds of every kind, " * (i % 7) + chr(0x100 + i) + "e\u0323 中" * (i % 3)
    for i in range(40)
] + ["", "\f", "שלום"]


def test_a_batch_is_each_text_alone_in_one_contiguous_array():
    batch = render_batch(TEXTS, STYLE)
    base = batch[0].pages.base
    assert base.shape == (sum(map(len, batch)), 90, 160) and base.flags.c_contiguous
    for text, pages in zip(TEXTS, batch):
        alone = render_pages(text, STYLE)
        assert np.shares_memory(pages.pages, base)
        for field in fields(alone):
            a, b = getattr(alone, field.name), getattr(pages, field.name)
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


@pytest.mark.parametrize("overflow", ["error", "truncate", "shrink"])
def test_threads_change_nothing(overflow):
    style = replace(STYLE, max_pages=0 if overflow == "error" else 2, overflow=overflow)
    one, many = (render_batch(TEXTS * 3, style, threads=n) for n in (1, 4))
    assert all(np.array_equal(a.pages, b.pages) for a, b in zip(one, many))
    assert [a.truncated for a in one] == [b.truncated for b in many]


def test_an_empty_batch_has_no_pages():
    assert render_batch([], STYLE) == []


def test_several_threads_fill_and_read_one_atlas():
    """Each thread meets new glyphs and clusters while the others draw."""
    renderer, results = Renderer(STYLE), {}

    def work(number):
        texts = [
            "".join(chr(0xA1 + (k * 7 + i) % 900) for k in range(60)) + f"q\u0302{i} x\u0323"
            for i in range(number, 120, 3)
        ]
        results[number] = [(text, renderer.render_pages(text).pages) for text in texts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for text, pages in [pair for number in (0, 3, 5) for pair in results[number]]:
        assert np.array_equal(pages, Renderer(STYLE).render_pages(text).pages)


def test_a_fork_after_use_draws_the_same_even_while_a_thread_is_inside():
    renderer = Renderer(STYLE)
    expected = renderer.render_pages(TEXTS[5]).pages.tobytes()
    stop = threading.Event()

    def busy():
        for i in range(0x4000, 0x9FFF):
            if stop.is_set():
                return
            renderer.render_pages(chr(i))  # a new glyph each: inside FreeType most of the time

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:  # nothing but the renderer runs here, whatever happens
                try:
                    os.write(write, zlib.crc32(renderer.render_pages(TEXTS[5]).pages).to_bytes(4))
                finally:
                    os._exit(0)
            os.close(write)
            assert os.read(read, 4) == zlib.crc32(expected).to_bytes(4)
            os.close(read)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def drawn_by(renderer):
    return renderer.render_pages(TEXTS[6]).pages


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_renderer_pickles_as_its_style_and_works_in_other_processes(method):
    renderer = Renderer(STYLE)
    expected = drawn_by(renderer)
    again = pickle.loads(pickle.dumps(renderer))
    assert again.style == STYLE and np.array_equal(drawn_by(again), expected)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(np.array_equal(p, expected) for p in pool.map(drawn_by, [renderer] * 4))


def test_clusters_beyond_the_limit_start_a_new_store(monkeypatch):
    for module in (glyphs, renderer_module):
        monkeypatch.setattr(module, "MAX_COMPOSITES", 50)
    renderer, stores = Renderer(STYLE), set()
    for i in range(120):
        text = f"{chr(0x250 + i)}\u0323"
        glyphs._store.cache_clear()
        assert np.array_equal(
            renderer.render_pages(text).pages, Renderer(STYLE).render_pages(text).pages
        )
        stores.add(renderer._current().store)
    assert len(stores) > 1 and len(renderer._current().store) <= 50


def test_styles_with_the_same_letters_share_their_glyphs():
    def store(**changes):
        return Renderer(replace(STYLE, **changes))._current().store

    assert store(line_height=2.0, ink=90, letter_spacing=1.0, margin=9) is store()
    for changes in ({"font_size": 9}, {"horizontal_scale": 0.9}, {"kerning": True}):
        assert store(**changes) is not store()


def test_no_more_stores_are_kept_than_their_bound():
    for size in range(1, glyphs.MOST_STORES + 30):
        Renderer(PageStyle(font_size=size, shaping="off"))
    assert glyphs._store.cache_info().currsize == glyphs.MOST_STORES


def test_the_fingerprint_is_that_of_settings_and_font_bytes_not_names(tmp_path):
    for name in ("a.ttf", "b.ttf"):
        (tmp_path / name).write_bytes(embedded("spacemo"))
    (tmp_path / "c.ttf").write_bytes(embedded("notosit"))
    a, b, c = (replace(STYLE, main_font=str(tmp_path / f"{name}.ttf")) for name in "abc")
    assert a.fingerprint() == b.fingerprint() != c.fingerprint() != STYLE.fingerprint()
    others = {
        "width": 161,
        "line_height": 1.3,
        "kerning": True,
        "fonts": (a.main_font,),
        "hinting": "light",
        "align": "justify",
        "ink": 1,
        "letter_spacing": 0.5,
        "first_indent": 2,
        "newline_mark": "¶",
        "tab": 5,
    }
    prints = {replace(STYLE, **{name: value}).fingerprint() for name, value in others.items()}
    assert len(prints | {STYLE.fingerprint()}) == len(others) + 1
    assert hash(PageStyle(width=160)) == hash(PageStyle(width=160))


def test_pages_that_are_let_go_are_used_again_and_pages_that_are_held_are_not():
    renderer = Renderer(STYLE)
    held = renderer.render_pages(TEXTS[3])
    before, place = held.pages.copy(), held.pages.ctypes.data
    for text in TEXTS * 3:
        other = renderer.render_pages(text)
        assert not np.shares_memory(other.pages, held.pages)
    assert np.array_equal(held.pages, before)
    view = held.pages[0, 5:]  # a view holds the memory too
    del held, other
    assert all(renderer.render_pages(text).pages.ctypes.data != place for text in TEXTS)
    assert np.array_equal(view, before[0, 5:])
    del view
    several = [renderer.render_pages(TEXTS[3]) for _ in range(70)]  # more than wait in the pool
    assert place in [pages.pages.ctypes.data for pages in several]


def test_memory_is_flat_over_many_pages():
    renderer, out = Renderer(STYLE), np.empty((200, 90, 160), np.uint8)
    peaks = []
    for _ in range(4):
        for _ in range(60):
            renderer.render_batch(TEXTS, out=out, threads=2)
            renderer.render_batch(TEXTS)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[0] < 4096  # KiB, over more than 20,000 pages


def run(*arguments, **kwargs):
    command = [sys.executable, "-m", "deepsynth_min.render", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_previews_are_the_pages_as_png_with_a_line_each(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    text = "some words in a file\n" * 30
    (tmp_path / "in.txt").write_text(text)
    done = run(tmp_path / "in.txt", "--out", tmp_path / "out", "--width", 128, "--height", 128)
    assert done.returncode == 0, done.stderr
    pages = render_pages(text, PageStyle(width=128, height=128))
    lines = done.stdout.splitlines()
    assert len(lines) == len(pages) > 1
    for number, line in enumerate(lines):
        file, rest = line.split(": ", 1)
        assert np.array_equal(np.asarray(Image.open(file)), pages.pages[number])
        start, end = pages.ranges[number]
        density = (end - start) / (2 * 3 + 1)
        assert f"{start}..{end}" in rest and "7 visual tokens" in rest and f"{density:.2f}" in rest
        assert "0 missing" in rest


def test_previews_overwrite_nothing_unless_told(tmp_path, capsys):
    (tmp_path / "in.txt").write_text("one\ftwo")
    arguments = [str(tmp_path / "in.txt"), "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    (tmp_path / "o" / "page-0001.png").unlink()
    before = (tmp_path / "o" / "page-0002.png").read_bytes()
    assert main(arguments + ["--invert"]) == 2
    assert not (tmp_path / "o" / "page-0001.png").exists()
    assert (tmp_path / "o" / "page-0002.png").read_bytes() == before
    assert main(arguments + ["--invert", "--force"]) == 0
    assert (tmp_path / "o" / "page-0002.png").read_bytes() != before


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["none.txt"], "none.txt"),
        (["."], r"\."),
        (["bad.txt"], "bad.txt.*byte 2"),
        (["in.txt", "--width", "0"], "width: 0"),
        (["in.txt", "--margin", "999"], "margin: 999"),
        (["in.txt", "--nope"], "--nope"),
        (["in.txt", "--font", "none.ttf"], "none.ttf"),
        (["in.txt", "--font-size", "big"], "font-size"),
        (["in.txt", "--fit", "0"], "pages: 0"),
        (["cjk.txt", "--on-missing", "error"], "no font has 1"),
        (["a\0b"], r"a\\x00b"),
        (["no\nfile"], r"no\\nfile"),
        (["pipe"], "pipe: not a regular file"),
        (["in.txt", "--out", "a\0b"], r"--out a\\x00b"),
        (["in.txt", "--out", "x" * 300], "--out x"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    tmp_path, arguments, what, monkeypatch, capsys
):
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("text")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    (tmp_path / "cjk.txt").write_text("中")
    os.mkfifo(tmp_path / "pipe")
    assert main(["--out", "o", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(what, error)
    assert error.startswith("error: ")
    assert not (tmp_path / "o").exists()


def test_a_folder_in_the_place_of_a_page_is_found_before_any_page_is_written(tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\f\f\f")
    (tmp_path / "page-0003.png").mkdir()
    assert main([str(tmp_path / "in.txt"), "--out", str(tmp_path), "--force"]) == 2
    assert "page-0003.png: exists, and is no file" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "page-0003.png"]


def test_a_huge_number_of_pages_fits_everything(tmp_path):
    (tmp_path / "in.txt").write_text("words")
    assert main([str(tmp_path / "in.txt"), "--out", str(tmp_path / "o"), "--fit", "9" * 30]) == 0


def test_standard_input_fit_and_every_setting_are_reachable():
    help_text = parser().format_help()
    for field in fields(PageStyle):
        name = "font" if field.name == "fonts" else field.name.replace("_", "-")
        assert f"--{name}" in help_text


def test_previews_read_standard_input_and_fit_pages(tmp_path):
    done = run("-", "--out", tmp_path / "o", "--fit", 1, input="words and more " * 90)
    assert done.returncode == 0 and done.stdout.startswith("font size ")
    assert len(os.listdir(tmp_path / "o")) == 1
