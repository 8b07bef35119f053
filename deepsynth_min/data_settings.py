"""Settings of what a run reads: rows, their pages, distortions of pages. The others: settings.py.

In: nothing. Out: the dataclasses of these concerns with their defaults.
"""

from dataclasses import dataclass
from typing import Literal

from .errors import UserError
from .options import fixed, free


@dataclass(frozen=True)
class DataSettings:
    data: tuple[str, ...] = fixed(
        ("embedded:notices",),
        "embedded:notices|reports|needles, the last also in lengths of one's own, in characters: "
        "embedded:needles@500,2000; or a file, a folder or a hub id (owner/name) of rows: JSON "
        "lines, JSON, CSV, TSV, Parquet, an image folder; with weights: a.jsonl b.parquet:0.3",
    )
    val_data: str = fixed(
        "",
        "held-out rows, given like --data, one name; empty: those of the embedded documents, or a "
        "set's validation split, else --val-fraction of its rows",
    )
    data_subset: str = fixed("", "subset (configuration) of a data set that has several")
    data_split: str = fixed("", "split that trains; empty: train, or all of a set without splits")
    data_revision: tuple[str, ...] = fixed(
        (), "each --data's branch, tag or commit on the hub; empty: the default"
    )
    val_revision: str = fixed("", "the same for a hub id in --val-data")
    val_fraction: float = fixed(
        0.05, "share held out where nothing else is, chosen by --seed; 0: none", 0, 0.9
    )
    val_samples: int = fixed(128, "at most this many held-out samples are scored; 0: all", 0)
    limit: int = fixed(0, "at most this many training rows of each --data; 0: all", 0)
    text_field: str = fixed("", "field with the text to draw; empty: found by its name")
    image_field: str = fixed("", "field with the image or images; empty: found by its name")
    summary_field: str = fixed("", "field with the answer; empty: found by its name")
    instruction_field: str = fixed("", "field with a row's instruction; empty: found by its name")
    page_from: Literal["text", "image"] = fixed(
        "text", "page of a row that has a text, an image and an answer"
    )
    instruction: str = fixed(
        "Summarize the document in one sentence.",
        "prompt after the page; a leading <image> is left out",
    )
    images_anywhere: bool = free(False, "image paths in rows may leave the data file's folder")
    on_bad_row: Literal["error", "skip"] = free(
        "error", "rows that cannot be used stop the run, or are left out and listed"
    )
    on_too_long: Literal["auto", "error", "skip", "truncate"] = free(
        "auto", "rows that do not fit into the context; auto: as --on-bad-row says"
    )
    max_bad: float = free(0.01, "share of bad rows above which even skip stops", 0, 1)
    bucket: int = fixed(16, "length bucketing: sorts the samples of N steps together; 0: none", 0)
    workers: int = free(1, "background threads that render and tokenise ahead", 1, 256)
    prefetch: int = free(4, "micro-batches prepared ahead", 1, 1024)
    feature_cache: str = free("off", "keep a frozen encoder's features: off, memory or a folder")
    cache_memory: float = free(4.0, "GiB of main memory for these features, in each process", 0)
    cache_disk: float = free(50.0, "GiB that the directory of these features may take", 0)

    def __post_init__(self) -> None:
        if isinstance(self.data, str):  # one alone
            object.__setattr__(self, "data", (self.data,) if self.data else ())
        if not self.data:
            raise UserError("--data: nothing is named")
        names = {}
        given = ("text_field", "image_field", "summary_field", "instruction_field")
        for option in (name for name in given if getattr(self, name)):
            other = names.setdefault(getattr(self, option), option)
            if other != option:
                options = ["--" + name.replace("_", "-") for name in (other, option)]
                raise UserError(f"{' and '.join(options)}: both are {getattr(self, option)!r}")


@dataclass(frozen=True)
class PageSettings:
    page_as: Literal["rendered", "text", "head", "tail", "none", "mean"] = fixed(
        "rendered",
        "what stands for a text: its pages; or, to see what these are worth, its own tokens, as "
        "many of its first or last ones as the pages would take, nothing, or as many averages of "
        "the embeddings of all",
    )
    font_size: int = fixed(0, "px; 0: the model's own, or page side / 64, at least 10", 0)
    margin: int = fixed(-1, "px on each side; -1: the model's own, or page side / 32", -1)
    line_height: float = fixed(0.0, "line distance in font sizes; 0: the model's own, or 1.25", 0)
    main_font: str = fixed("", "font file used before the embedded ones")
    font: tuple[str, ...] = fixed((), "tried after the embedded: FILE, FILE@wght=700, FILE.ttc#2")
    extra_fonts: bool = fixed(True, "use the fonts of installed extras (scripts, emoji, cjk)")
    hinting: Literal["none", "normal", "light", "auto"] = fixed(
        "none", "FreeType's fitting of glyphs to pixels; only none is the same in every version"
    )
    horizontal_scale: float = fixed(1.0, "letters so many times as wide as they are", 0.1, 10)
    kerning: bool = fixed(False, "use the fonts' kern tables, or else GPOS")
    letter_spacing: float = fixed(0.0, "px added between characters", -1024, 1024)
    align: Literal["left", "right", "center", "justify"] = fixed(
        "left", "the side at which lines begin or end, the middle, or both sides"
    )
    first_indent: int = fixed(0, "px, of the first line of each paragraph", 0)
    hanging_indent: int = fixed(0, "px, of the other lines of each paragraph", 0)
    columns: int = fixed(1, "text columns on a page", 1)
    spaces: Literal["keep", "collapse"] = fixed("keep", "collapse: a run of blanks is one space")
    newline_mark: str = fixed("", "drawn in place of each line end, so that the text runs on")
    ink: int = fixed(0, "grey of the text, 0 black to 255 white", 0, 255)
    paper: int = fixed(255, "grey of the page", 0, 255)
    invert: bool = fixed(False, "every grey g becomes 255 - g: white text on black")
    crop_last: bool = fixed(
        False, "cut the last page below its text; the rest is then fitted as an image is (--fit)"
    )
    on_missing: Literal["box", "error"] = fixed("box", "for characters that no font has")
    max_pages: int = fixed(0, "pages per document; 0: as many as the text needs", 0)
    overflow: Literal["error", "truncate", "shrink"] = fixed("error", "if --max-pages is too few")
    max_tiles: int = fixed(0, "gundam: tiles of a page at most; 0: 6, of Unlimited-OCR 32", 0, 32)
    fit: Literal["auto", "pad", "stretch"] = fixed(
        "auto", "images become square by grey edges, or stretched; auto: stretched up to 640 px"
    )


@dataclass(frozen=True)
class AugmentSettings:
    vary: tuple[str, ...] = fixed(
        (),
        "draw the page settings of each training sample: LOW:HIGH, A|B|... or, of yes and no, a "
        "share, as in font_size=9:16,line_height=1.0:1.6,font=a.ttf|b.ttf,columns=1|2,invert=0.1",
    )
    augment: bool = fixed(False, "distort the pages of training samples, as a scanner would")
    augment_rotation: float = fixed(3.0, "rotation either way: at most so many degrees", 0, 180)
    augment_perspective: float = fixed(
        0.03, "perspective: how much nearer an edge is than the middle, at most", 0, 0.4
    )
    augment_scale: float = fixed(0.2, "zoom: by a factor from 1 - this to 1 + this", 0, 0.9)
    augment_shift: float = fixed(0.03, "shift: at most this share of half a page", 0, 1)
    augment_brightness: float = fixed(
        0.1, "brightness either way: at most this share of the range from ink to paper", 0, 1
    )
    augment_contrast: float = fixed(0.2, "contrast: factor from 1 - this to 1 + this", 0, 1)
    augment_blur: float = fixed(0.7, "Gaussian blur: largest standard deviation, px", 0, 20)
    augment_noise: float = fixed(
        0.05, "Gaussian noise: largest standard deviation, as a share of ink to paper", 0, 1
    )
    augment_flip: float = fixed(0.0, "mirroring: share of pages, their text with them", 0, 1)
