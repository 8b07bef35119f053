"""Rows become batches: sequences, pages, tiles, and the exact order of samples."""

from dataclasses import replace

import pytest
import torch

from deepsynth_min.data.loader import Loader, held_out_shares
from deepsynth_min.data.row import Row
from deepsynth_min.data.rows import EmbeddedRows, View
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import encode, load_tokenizer
from deepsynth_min.errors import UserError
from deepsynth_min.model.shape.config import TextConfig
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
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
    asked = encode(tokenizer, "\nSum up.")  # as the official code strips it
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
    assert own.ids[22 : own.prompt] == encode(tokenizer, "\n<own>")
    with pytest.raises(UserError, match="file.jsonl:1: <image> in the middle of the instruction"):
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


def test_pages_of_a_model_with_learned_queries_have_no_row_ends_and_tiles_of_its_own(tokenizer):
    config = PRESETS["deepseek-ocr-2"]
    config = replace(config, decoder=replace(config.decoder, vocab_size=4096))

    def builder_of(mode: str, **changes) -> SampleBuilder:
        return SampleBuilder(change(Settings(), mode=mode, **changes), config, tokenizer)

    for mode, side, visual in (("auto", 1024, 257), ("768", 768, 145), ("base", 1024, 257)):
        sample = builder_of(mode)(row())
        assert sample.pages.shape == (1, 1, side, side) and sample.visual == visual
    builder = builder_of("gundam")
    short, high, square, long = (builder(row("several words " * n)) for n in (20, 410, 800, 1200))
    assert [sample.grids for sample in (short, high, square, long)] == [
        [(1, 1)],
        [(1, 2)],
        [(2, 2)],
        [(2, 3)],
    ]
    assert short.visual == 257 and long.visual == 1121 and long.tiles[0].shape == (6, 1, 768, 768)
    batch = collate([short, long, builder.placeholder()], builder.special)
    assert not batch.newlines and batch.image_mask.sum(1).tolist() == [257, 1121, 0]
    with pytest.raises(UserError, match="--max-tiles 9: this model reads up to 6"):
        builder_of("gundam", max_tiles=9)
    with pytest.raises(UserError, match="--mode small: pages of 640 px; this model reads"):
        builder_of("small")


def test_an_unlimited_ocr_reads_up_to_32_tiles_of_a_page(tokenizer):
    config = PRESETS["unlimited-ocr"]
    config = replace(config, decoder=replace(config.decoder, vocab_size=4096))
    builder = SampleBuilder(change(Settings(), mode="gundam"), config, tokenizer)
    sample = builder(row("several words " * 5000))
    (grid,) = sample.grids
    assert 6 < grid[0] * grid[1] <= 32 and len(sample.tiles[0]) == grid[0] * grid[1]
    assert sample.visual == 273 + 10 * grid[1] * (10 * grid[0] + 1)
    with pytest.raises(UserError, match="--max-tiles 10: this model reads up to 9"):
        SampleBuilder(
            change(Settings(), mode="gundam", max_tiles=10),
            replace(PRESETS["tiny"], page_size=1024),
            tokenizer,
        )


def test_a_page_limit_in_gundam_mode_counts_canvases(tokenizer):
    builder = make_builder(tokenizer, mode="gundam", max_pages=1)
    assert builder(row("several words " * 500)).grids == [(2, 2)]
    with pytest.raises(UserError, match="file.jsonl:1"):
        builder(row("several words " * 2200))


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


def test_grey_pages_and_colour_images_share_a_batch(tmp_path, tokenizer):
    Image = pytest.importorskip("PIL.Image")
    Image.new("RGB", (300, 300), (255, 0, 0)).save(tmp_path / "red.png")
    builder = make_builder(tokenizer)
    samples = [builder(row()), builder(Row("f:1", "s", None, (tmp_path / "red.png",)))]
    batch = collate(samples, builder.special)
    assert batch.pages.shape == (2, 3, 256, 256)
    assert batch.pages[0, 0].equal(batch.pages[0, 2]) and batch.pages[1, 1].max() == 0


def test_the_loader_gives_the_same_batches_from_any_step_on_with_any_number_of_threads(tokenizer):
    rows = EmbeddedRows("val", "reports")

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


def test_a_cropped_last_page_is_made_square_as_an_image_is(tokenizer):
    whole = make_builder(tokenizer, mode="512")(row()).pages[0, 0]
    padded = make_builder(tokenizer, mode="512", crop_last=True, fit="pad")(row()).pages[0, 0]
    text = (whole < 255).any(1)
    height = text.nonzero()[0][-1] + 1
    grey = (padded == 127).all(1)
    assert 0 < (~grey).sum() < 2 * height and abs(int(grey[:256].sum() - grey[256:].sum())) <= 1
    assert (padded[~grey][:height] == whole[:height]).all()
    stretched = make_builder(tokenizer, mode="512", crop_last=True, fit="stretch")(row())
    assert not (stretched.pages[0, 0] == 127).all(1).any()
    with pytest.raises(UserError, match="--crop-last: not with --mode gundam"):
        make_builder(tokenizer, mode="gundam", crop_last=True)
