"""Rows become batches: sequences, pages, tiles, and the exact order of samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deepsynth_min.data.loader import Loader, held_out_shares
from deepsynth_min.data.row import Row
from deepsynth_min.data.rows import EmbeddedRows, View
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import encode, load_tokenizer
from deepsynth_min.errors import UserError
from deepsynth_min.model.config import TextConfig
from deepsynth_min.model.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.pages.images import choose_grid, cut_tiles, open_image, prepare
from deepsynth_min.settings import Settings


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def make_builder(tokenizer, **changes) -> SampleBuilder:
    settings = change(Settings(), **changes)
    config = PRESETS["tiny"]
    decoder = replace(config.decoder, max_position_embeddings=4096)
    return SampleBuilder(settings, replace(config, decoder=decoder), tokenizer)


def row(text="A short document.\nWith two lines.", summary="Summary <image> here.") -> Row:
    return Row("file.jsonl:1", summary, text)


def test_a_sequence_is_bos_page_instruction_answer_eos_and_only_the_answer_is_scored(tokenizer):
    builder = make_builder(tokenizer, instruction="Sum up. ")
    sample = builder(row())
    special = builder.special
    visual = 4 * 5 + 1
    asked = encode(tokenizer, "\nSum up. ")
    answer = encode(tokenizer, "Summary <image> here.")
    assert special.image not in answer  # text is never syntax
    expected = [special.bos] + [special.image] * visual + asked + answer + [special.eos]
    assert sample.ids == expected
    batch = collate([sample, builder(row(summary="S"))], special)
    scored = batch.labels[0] != -100
    assert batch.labels[0][scored].tolist() == answer + [special.eos]
    assert scored.nonzero()[0].item() == 1 + visual + len(asked)
    short = batch.attention_mask[1].sum()
    assert (
        batch.input_ids[1, short:].eq(special.pad).all() and not batch.image_mask[1, short:].any()
    )
    assert batch.tokens == len(expected) + short


def test_text_is_drawn_as_the_model_learned_it_unless_settings_say_otherwise(tokenizer):
    trained = replace(PRESETS["tiny"], text=TextConfig(font_size=30, line_height=2.0, margin=7))
    given = change(Settings(), font_size=12, line_height=1.5, margin=0)
    drawn = [
        (style.font_size, style.line_height, style.margin)
        for style in (
            SampleBuilder(settings, config, tokenizer).style
            for settings in (Settings(), given)
            for config in (trained, PRESETS["tiny"])
        )
    ]
    assert drawn == [(30, 2.0, 7), (10, 1.25, 8), (12, 1.5, 0), (12, 1.5, 0)]


def test_a_rows_own_instruction_replaces_the_default(tokenizer):
    builder = make_builder(tokenizer)
    own = builder(replace(row(), instruction="<own> "))
    assert own.ids[22 : own.prompt] == encode(tokenizer, "\n<own> ")
    with pytest.raises(UserError, match="file.jsonl:1: the instruction holds the image token"):
        builder(replace(row(), instruction="What is <image>?"))


def test_a_text_longer_than_a_page_becomes_several_pages_and_their_token_blocks(tokenizer):
    sample = make_builder(tokenizer)(row("many words " * 300))
    assert len(sample.pages) > 2 and sample.visual == 21 * len(sample.pages)
    assert all((page < 128).any() for page in sample.pages)


def test_a_text_longer_than_the_context_is_an_error_that_says_what_to_do(tokenizer):
    with pytest.raises(
        UserError, match=r"file.jsonl:1: .* more than \d+ pages, .* context of 4096 .*--max-pages"
    ):
        make_builder(tokenizer)(row("many words " * 20_000))
    with pytest.raises(UserError, match="file.jsonl:1: .*"):
        make_builder(tokenizer, max_pages=1)(row("many words " * 2_000))
    sample = make_builder(tokenizer, max_pages=2, overflow="truncate")(row("many words " * 2_000))
    assert len(sample.pages) == 2


@pytest.mark.parametrize(
    "mode, side, visual",
    [
        ("auto", 256, 21),
        ("tiny", 512, 73),
        ("small", 640, 111),
        ("base", 1024, 273),
        ("large", 1280, 421),
        ("320", 320, 31),
    ],
)
def test_pages_are_drawn_at_the_size_of_the_mode(tokenizer, mode, side, visual):
    sample = make_builder(tokenizer, mode=mode)(row())
    assert sample.pages.shape == (1, 1, side, side) and sample.visual == visual
    assert collate([sample], make_builder(tokenizer).special).grids is None


def test_gundam_draws_on_the_tile_grid_and_the_global_view_is_its_shrunken_copy(tokenizer):
    builder = make_builder(tokenizer, mode="gundam")
    short, middle, long = (builder(row("several words " * n)) for n in (20, 500, 800))
    assert short.grids == [(1, 1)] and short.tiles == [] and short.visual == 273
    assert middle.grids == [(2, 2)] and long.grids == [(2, 3)]
    assert long.visual == 273 + 30 * 21 and long.tiles[0].shape == (6, 1, 640, 640)
    # Put together again and averaged down, the tiles are the global view, up to resampling.
    tiles = torch.from_numpy(long.tiles[0]).view(3, 2, 640, 640)
    canvas = tiles.permute(0, 2, 1, 3).reshape(1, 1, 1920, 1280).float()
    view = torch.from_numpy(long.pages[0, 0]).float()
    assert view[:, :170].eq(127).all()  # 1280 x 1920 fitted into 1024 x 1024: grey at the sides
    small = torch.nn.functional.interpolate(canvas, (1024, 683), mode="area")[0, 0]
    assert (view[:, 170:853] - small).abs().mean() < 8
    batch = collate([short, long], builder.special)
    assert batch.grids.tolist() == [[1, 1], [2, 3]] and batch.tiles.shape[0] == 6


def test_a_page_limit_in_gundam_mode_counts_canvases(tokenizer):
    builder = make_builder(tokenizer, mode="gundam", max_pages=1)
    assert builder(row("several words " * 500)).grids == [(2, 2)]
    with pytest.raises(UserError, match="file.jsonl:1"):
        builder(row("several words " * 2200))


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


def test_an_image_is_turned_as_its_exif_says_and_a_broken_one_is_named(tmp_path, tokenizer):
    Image = pytest.importorskip("PIL.Image")
    image = Image.new("L", (40, 20), 255)
    image.paste(0, (0, 0, 10, 20))  # ink at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: ink at the top
    image.save(tmp_path / "turned.png", exif=exif)
    builder = make_builder(tokenizer)
    sample = builder(Row("f:1", "s", None, (tmp_path / "turned.png",)))
    assert sample.pages.shape == (1, 3, 256, 256)
    assert sample.pages[0, :, :50].max() < 40 and sample.pages[0, :, 80:].min() > 215
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="f:1: .*bad.png: not a readable image"):
        builder(Row("f:1", "s", None, (tmp_path / "bad.png",)))


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


def test_grey_pages_and_colour_images_share_a_batch(tmp_path, tokenizer):
    Image = pytest.importorskip("PIL.Image")
    Image.new("RGB", (300, 300), (255, 0, 0)).save(tmp_path / "red.png")
    builder = make_builder(tokenizer)
    samples = [builder(row()), builder(Row("f:1", "s", None, (tmp_path / "red.png",)))]
    batch = collate(samples, builder.special)
    assert batch.pages.shape == (2, 3, 256, 256)
    assert batch.pages[0, 0].equal(batch.pages[0, 2]) and batch.pages[1, 1].max() == 0


def test_the_loader_gives_the_same_batches_from_any_step_on_with_any_number_of_threads(tokenizer):
    rows = EmbeddedRows("val")

    def batches(start: int, workers: int) -> list:
        settings = change(Settings(), batch_size=2, accumulate=2, workers=workers)
        loader = Loader(
            rows, SampleBuilder(settings, PRESETS["tiny"], tokenizer), settings, step=start
        )
        steps = [next(loader) for _ in range(5 - start)]
        loader.close()
        return steps

    whole, resumed = batches(0, 1), batches(3, 3)
    for step, reference in zip(whole[3:], resumed):
        for a, b in zip(step, reference):
            assert a.rows == b.rows and a.input_ids.equal(b.input_ids) and a.pages.equal(b.pages)


def test_an_error_in_a_background_thread_reaches_the_loop(tokenizer):
    settings = change(Settings(), max_pages=1, batch_size=1)
    builder = SampleBuilder(settings, PRESETS["tiny"], tokenizer)
    loader = Loader(View([row("word " * 3000)], 0, 1), builder, change(settings, bucket=0))
    with pytest.raises(UserError, match="file.jsonl:1"):
        next(loader)
    loader.close()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_held_out_rows_are_dealt_once_each_in_batches_that_one_process_makes_too(world):
    dealt = [held_out_shares((5, 11), 4, rank, world) for rank in range(world)]
    batches = sorted((batch for own in dealt for batch in own), key=lambda batch: batch[0])
    assert [list(batch) for batch in batches] == [[0, 1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_tokenizer_larger_than_the_vocabulary_is_an_error(tokenizer):
    config = PRESETS["tiny"]
    small = replace(config, decoder=replace(config.decoder, vocab_size=1024))
    with pytest.raises(UserError, match="ids up to 4095, .* vocabulary 1024"):
        SampleBuilder(Settings(), small, tokenizer)


def test_the_prompt_ends_where_the_answer_begins(tokenizer):
    builder = make_builder(tokenizer)
    prompt, sample = builder.prompt(row()), builder(row())
    assert sample.ids[: sample.prompt] == prompt.ids
