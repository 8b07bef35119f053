"""Pictures that users supply: prepared as the official processor does, in every stored form."""

import numpy as np
import pytest

from deepsynth_min.errors import UserError
from deepsynth_min.pages.images import choose_grid, cut_tiles, open_image, prepare


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
    assert choose_grid(*size, most) == grid


def test_foreign_images_are_prepared_as_the_official_processor_does(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    image = Image.new("RGB", (800, 400), (10, 20, 30))
    small, tiles, grid = prepare(image, 640, False, 6)
    assert small.shape == (3, 640, 640) and (small[1] == 20).all() and tiles is None
    view, tiles, grid = prepare(image, 1024, True, 6)
    assert (view[:, 0] == 127).all() and (view[:, 512] == [[10], [20], [30]]).all()
    assert grid == (2, 1) and tiles.shape == (2, 3, 640, 640)


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
    pixels = np.asarray(open_image(tmp_path / name, "f:1"))
    assert pixels.shape == (20, 40, 3)
    assert (pixels[:, :10] == 0).all() and (pixels[:, 10:] == 255).all()


@pytest.mark.parametrize("mode, clear", [("P", 0), ("L", 0), ("RGB", (0, 0, 0))])
def test_a_transparent_colour_is_paper(tmp_path, mode, clear):
    image = _drawn("L").convert(mode)
    clear = image.getpixel((0, 0)) if mode == "P" else clear
    image.save(tmp_path / "a.png", transparency=clear)
    assert (np.asarray(open_image(tmp_path / "a.png", "f:1")) == 255).all()


def test_images_without_a_known_meaning_are_refused_by_name(tmp_path):
    for kind in ("32 bits", "float"):
        _drawn(kind).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match="f:1: .*a.tif: pixels of 32 bits"):
            open_image(tmp_path / "a.tif", "f:1")
    for name in ("a.gif", "a.tif", "a.webp"):
        other = _drawn("RGB").rotate(180)
        _drawn("RGB").save(tmp_path / name, save_all=True, append_images=[other])
        with pytest.raises(UserError, match=f"f:1: .*{name}: holds 2 pictures"):
            open_image(tmp_path / name, "f:1")
    _drawn("RGB").save(tmp_path / "a.pcx")
    with pytest.raises(UserError, match="f:1: .*a.pcx: not a readable image"):
        open_image(tmp_path / "a.pcx", "f:1")


def test_a_damaged_image_is_refused_and_never_ends_otherwise(tmp_path):
    random = np.random.default_rng(0)
    for kind, name in (
        ("P", "a.png"),
        ("RGB", "a.jpg"),
        ("16 bits", "a.tif"),
        ("RGB", "a.webp"),
        ("P", "a.gif"),
        ("RGB", "a.bmp"),
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
                open_image(path, "f:1")
            except UserError as error:
                assert str(error).startswith(f"f:1: {path}: ")
