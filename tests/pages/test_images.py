"""Pictures that users supply: prepared as the official processor does, in every stored form."""

import sys
from pathlib import Path

import numpy as np
import pytest

from deepsynth_min.errors import UserError
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.pages.images import choose_grid, cut_tiles, open_images, prepare
from deepsynth_min.pages.modes import PageFormat


def test_cut_tiles_go_row_by_row():
    canvas = np.arange(6, dtype=np.uint8).reshape(3, 2).repeat(640, 0).repeat(640, 1)[None]
    tiles = cut_tiles(canvas, (2, 3))
    assert [int(tile.min()) for tile in tiles] == [int(tile.max()) for tile in tiles] == [*range(6)]


@pytest.mark.parametrize(
    "size, most, grid",
    [
        ((640, 640), 9, (1, 1)),
        ((1280, 640), 6, (2, 1)),
        ((640, 2000), 6, (1, 3)),
        ((1000, 1000), 6, (2, 2)),
        ((2000, 2000), 9, (3, 3)),
        ((700, 720), 9, (2, 2)),
        ((3000, 2000), 6, (3, 2)),
    ],
)
def test_the_grid_is_the_nearest_in_shape_and_larger_for_larger_images(size, most, grid):
    assert choose_grid(*size, most, 640) == grid


def test_foreign_images_are_prepared_as_the_official_processor_does(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    image = Image.new("RGB", (800, 400), (10, 20, 30))
    small, tiles, grid = prepare(image, 640, PageFormat(), 0)
    assert small.shape == (3, 640, 640) and (small[1] == 20).all() and tiles is None
    view, tiles, grid = prepare(image, 1024, PageFormat(), 6)
    assert (view[:, 0] == 127).all() and (view[:, 512] == [[10], [20], [30]]).all()
    assert grid == (2, 1) and tiles.shape == (2, 3, 640, 640)


def test_an_image_is_padded_or_stretched_as_asked_and_else_as_the_official_code_does():
    """256 x 64, its left half black: padded, its rows stand in the middle between grey ones."""
    Image = pytest.importorskip("PIL.Image")
    pixels = np.full((64, 256, 3), 200, np.uint8)
    pixels[:, :128] = 0
    image = Image.fromarray(pixels)

    def view(side: int, *fit) -> np.ndarray:
        found, tiles, grid = prepare(image, side, PageFormat(), 0, *fit)
        assert tiles is None and grid == (1, 1) and found.shape == (3, side, side)
        assert (found == found[:1]).all()
        return found[0]

    padded = view(256, "pad")  # as large as it was: no pixel changes
    assert (padded[96:160] == pixels[..., 0]).all()
    assert (padded[:96] == 127).all() and (padded[160:] == 127).all()
    stretched = view(256, "stretch")  # four times as high: every row is the same
    assert (stretched == pixels[:1, :, 0]).all()
    assert (view(256) == stretched).all() and (view(640, "auto") == view(640, "stretch")).all()
    assert (view(1024) == view(1024, "pad")).all()
    assert (view(1024, "stretch")[0, :500] == 0).all() and (view(1024)[0] == 127).all()


def test_fit_leaves_the_tiles_of_gundam_as_they_are():
    Image = pytest.importorskip("PIL.Image")
    image = Image.effect_noise((800, 400), 90).convert("RGB")
    pad, stretch = (prepare(image, 1024, PageFormat(), 6, fit) for fit in ("pad", "stretch"))
    assert (pad[1] == stretch[1]).all() and pad[2] == stretch[2] == (2, 1)
    assert (pad[0] != stretch[0]).any()


def test_foreign_images_are_prepared_as_the_released_processor_of_deepseek_ocr_2_does():
    """Sizes around a tile's and of all shapes; its view and its tiles, to the pixel."""
    Image = pytest.importorskip("PIL.Image")
    released = pytest.importorskip(
        "transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2"
    ).DeepseekOcr2ImageProcessorPil()
    page_format = PRESETS["deepseek-ocr-2"].page_format
    sizes = [(768, 768), (769, 300), (500, 900), (1600, 1500), (2500, 700), (300, 1900)]
    for size in sizes:
        rough = np.random.RandomState(0).randint(0, 256, (9, 9, 3), np.uint8)
        image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
        view, tiles, (w, h) = prepare(image, 1024, page_format, 6)
        theirs = released(image, do_rescale=False, do_normalize=False, return_tensors="np")
        assert theirs["num_local_patches"] == [w * h if w * h > 1 else 0], size
        if w * h > 1:
            assert np.array_equal(tiles, theirs["pixel_values_local"]), size
        # Where the padding begins is rounded differently, by a pixel at most.
        assert np.abs(view.astype(int) - theirs["pixel_values"][0]).mean() < 1, size
    # Of a page of 768 px the official code makes a square, whatever it was.
    assert not (prepare(image, 768, page_format, 0)[0] == 127).all(0).any()


def _drawn(kind: str):
    """Black ink at the left of white paper, 40 x 20 px, stored in one of Pillow's modes."""
    Image = pytest.importorskip("PIL.Image")
    grey = np.full((20, 40), 255, np.uint8)
    grey[:, :10] = 0
    if kind == "16 bits":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if kind == "32 bits":
        return Image.fromarray(grey.astype(np.int32) * 257)
    if kind == "float":
        return Image.fromarray(grey.astype(np.float32) / 255)
    if kind == "ink with alpha":
        return Image.fromarray(np.stack([grey * 0] * 3 + [255 - grey], -1))
    return Image.fromarray(grey).convert(kind)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("1", "a.png"),
        ("L", "a.png"),
        ("LA", "a.png"),
        ("P", "a.png"),
        ("RGBA", "a.png"),
        ("CMYK", "a.tif"),
        ("16 bits", "a.png"),
        ("16 bits", "a.tif"),
        ("ink with alpha", "a.png"),
        ("ink with alpha", "a.webp"),
        ("RGB", "a.bmp"),
        ("L", "a.pgm"),
        ("P", "a.gif"),
    ],
)
def test_ink_is_black_and_paper_white_whatever_an_image_is_stored_as(tmp_path, kind, name):
    _drawn(kind).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    pixels = np.asarray(next(open_images(tmp_path / name, "f:1")))
    assert pixels.shape == (20, 40, 3)
    assert (pixels[:, :10] == 0).all() and (pixels[:, 10:] == 255).all()


@pytest.mark.parametrize("mode, clear", [("P", 0), ("L", 0), ("RGB", (0, 0, 0))])
def test_a_transparent_colour_is_paper(tmp_path, mode, clear):
    image = _drawn("L").convert(mode)
    clear = image.getpixel((0, 0)) if mode == "P" else clear
    image.save(tmp_path / "a.png", transparency=clear)
    assert (np.asarray(next(open_images(tmp_path / "a.png", "f:1"))) == 255).all()


def test_images_without_a_known_meaning_are_refused_by_name(tmp_path):
    for kind in ("32 bits", "float"):
        _drawn(kind).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match="f:1: .*a.tif: pixels of 32 bits"):
            list(open_images(tmp_path / "a.tif", "f:1"))
    _drawn("RGB").save(tmp_path / "a.pcx")
    with pytest.raises(UserError, match="f:1: .*a.pcx: not a readable image"):
        list(open_images(tmp_path / "a.pcx", "f:1"))


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.avif"])
def test_a_file_of_several_pictures_is_as_many_pages(tmp_path, name):
    turned = _drawn("RGB").rotate(180)
    _drawn("RGB").save(tmp_path / name, save_all=True, append_images=[turned, _drawn("RGB")])
    found = [np.asarray(image) for image in open_images(tmp_path / name, "f:1")]
    assert [(page[10, 5, 0] < 128, page[10, 35, 0] < 128) for page in found] == [
        (True, False),
        (False, True),
        (True, False),
    ]


CASES = Path(__file__).parents[1] / "cases" / "images"


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("three-pages.tiff", 3),
        ("three-pages.pdf", 3),
        ("scan.jp2", 1),
        ("photo.webp", 1),
        ("photo.avif", 1),
        ("cmyk.jpg", 1),
        ("turned.jpg", 1),
    ],
)
def test_scans_of_every_kind_are_pages_from_a_path_and_from_bytes(name, sizes):
    pages = list(open_images(CASES / name, "f:1"))
    assert len(pages) == sizes and all(page.mode == "RGB" for page in pages)
    for page in pages:
        grey = np.asarray(page.convert("L"))
        assert grey.max() > 200 and grey.min() < 100  # ink on paper
    again = list(open_images((CASES / name).read_bytes(), "f:1"))
    assert [p.tobytes() for p in again] == [p.tobytes() for p in pages]


def test_pages_of_a_pdf_have_144_dots_an_inch_and_a_broken_one_is_named(tmp_path, monkeypatch):
    import pypdfium2

    document = pypdfium2.PdfDocument.new()
    for size in ((72, 36), (100_000, 100_000)):
        document.new_page(*size)
    document.save(tmp_path / "a.pdf")
    most = 10**6  # in a second the pixels of which Pillow is afraid are not drawn
    monkeypatch.setattr("deepsynth_min.pages.images.MAX_PIXELS", most)
    sizes = [image.size for image in open_images(tmp_path / "a.pdf", "f:1")]
    assert sizes[0] == (144, 72) and 0.99 * most < sizes[1][0] * sizes[1][1] <= 1.001 * most
    whole = (CASES / "three-pages.pdf").read_bytes()
    (tmp_path / "b.pdf").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match="f:1: .*b.pdf: not a readable image"):
        list(open_images(tmp_path / "b.pdf", "f:1"))


def test_photographs_of_phones_need_an_extra_and_are_read_with_it(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(_drawn("RGB").resize((64, 64))).save(tmp_path / "a.heic")
    (page,) = open_images(tmp_path / "a.heic", "f:1")
    assert page.size == (64, 64) and page.getpixel((4, 32))[0] < 100
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match="HEIC needs pillow-heif: pip install 'deepsynth-min.heic"):
        list(open_images(tmp_path / "a.heic", "f:1"))
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(UserError, match="PDF needs pypdfium2: pip install 'deepsynth-min.pdf"):
        list(open_images(CASES / "three-pages.pdf", "f:1"))


def test_a_damaged_image_is_refused_and_never_ends_otherwise(tmp_path):
    random = np.random.default_rng(0)
    for kind, name in (
        ("P", "a.png"),
        ("RGB", "a.jpg"),
        ("16 bits", "a.tif"),
        ("RGB", "a.webp"),
        ("P", "a.gif"),
        ("RGB", "a.bmp"),
        ("RGB", "a.avif"),
        ("RGB", "a.jp2"),
        ("RGB", "a.pdf"),
    ):
        path = tmp_path / name
        _drawn(kind).save(path)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for at in random.integers(0, len(whole), 4):
                damaged[at] = random.integers(256)
            path.write_bytes(damaged[: random.integers(len(whole) // 2, len(whole) + 1)])
            try:
                list(open_images(path, "f:1"))
            except UserError as error:
                assert str(error).startswith(f"f:1: {path}: ")
