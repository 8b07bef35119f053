"""Rendering settings as Glyph publishes them (arXiv 2510.17800): its config.json -> page settings.

In: a JSON object whose lengths are points, as reportlab lays them out, and whose `dpi` makes pixels
of them. Out: {page setting: value} by the names of PageStyle, and what was left out, in words.

The one idea: what a field does there is said in the settings that there are here: a page that is
squeezed to `horizontal-scale` of its width is narrower, and so are its margins and letters;
`left-indent` is margin.
"""

import json
import re

from .errors import UserError, read_text

LENGTHS = (
    *("margin-x", "margin-y", "font-size", "line-height", "first-line-indent", "left-indent"),
    *("right-indent", "dpi", "horizontal-scale"),
)
# What nothing here does, unless it is off.
NOT_HERE = {
    "space-before": "paragraphs are not set apart",
    "space-after": "paragraphs are not set apart",
    "border-width": "there are no borders",
    "border-padding": "there are no borders",
    "auto-crop-width": "pages keep their width",
}


def read(path: str) -> tuple[dict[str, object], list[str]]:
    """(page settings, sentences about what was left out). Raises UserError."""
    where = f"--style-json {path}"
    try:
        given = json.loads(read_text(path, "--style-json "))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(given, dict):
        raise UserError(f"{where}: not a JSON object of rendering settings")
    left = {name: value for name, value in given.items() if value is not None}
    numbers = {
        name: _number(left.pop(name), f"{where}: {name}") for name in LENGTHS if name in left
    }
    values = _lengths(numbers, left.pop("page-size", None), where)
    if font := left.pop("font-path", ""):
        values["main_font"] = _text(font, f"{where}: font-path")
    if align := left.pop("alignment", ""):
        values["align"] = _alignment(align, f"{where}: alignment")
    notes = _greys(left, values, where)
    if "auto-crop-last-page" in left:
        values["crop_last"] = bool(left.pop("auto-crop-last-page"))
    markup = _text(left.pop("newline-markup", "<br/>"), f"{where}: newline-markup")
    if mark := re.sub(r"<[^>]*>", "", markup):
        values["newline_mark"] = mark
    return values, notes + _left_out(left)


def for_run(path: str, known: set[str]) -> tuple[dict[str, object], list[str]]:
    """The same for a run, whose pages have a size of the model's and one margin. known: names of
    its page settings."""
    values, notes = read(path)
    sides = ("left", "right", "top", "bottom")
    given = [values.pop(name) for name in (f"margin_{s}" for s in sides) if name in values]
    if given:
        values["margin"] = given[0]
        if set(given) != {given[0]}:
            notes.append(f"margins other than {given[0]} px: pages of a run have one for all sides")
    if "width" in values:
        size = f"page-size ({values.pop('width')} x {values.pop('height')} px)"
        notes.append(f"{size}: --mode says how large a page is")
    return {name: value for name, value in values.items() if name in known}, notes


def _lengths(given: dict[str, float], size: object, where: str) -> dict[str, object]:
    """Sizes and places in pixels."""
    scale, wide = given.get("dpi", 72.0) / 72, given.get("horizontal-scale", 1.0)
    if scale <= 0 or wide <= 0:
        raise UserError(f"{where}: dpi and horizontal-scale must be above 0")

    def px(name: str, times: float = scale) -> int:
        return round(given.get(name, 0.0) * times)

    across = scale * wide
    values: dict[str, object] = {}
    if size is not None:
        width, height = _page_size(size, f"{where}: page-size")
        values |= {"width": round(width * across), "height": round(height * scale)}
    first, left, right = (px(f"{n}-indent", across) for n in ("first-line", "left", "right"))
    if "margin-x" in given or left or right or first < 0:
        values["margin_left"] = max(0, px("margin-x", across) + left + min(0, first))
        values["margin_right"] = px("margin-x", across) + right
    if "margin-y" in given:
        values |= {"margin_top": px("margin-y"), "margin_bottom": px("margin-y")}
    if first:
        values["first_indent" if first > 0 else "hanging_indent"] = abs(first)
    if "font-size" in given:
        values["font_size"] = px("font-size")
        points = given.get("line-height") or given["font-size"] + 1
        values["line_height"] = round(points / max(given["font-size"], 0.01), 4)
    if wide != 1:
        values["horizontal_scale"] = wide
    return values


def _greys(left: dict[str, object], values: dict[str, object], where: str) -> list[str]:
    """Takes the colours out of `left` and puts ink and paper into `values`; says what is lost."""
    names = ("font-color", "para-bg-color", "page-bg-color")
    found = {name: _colour(left.pop(name), f"{where}: {name}") for name in names if name in left}
    notes = [f"{name}: its grey is taken" for name, (_, is_grey) in found.items() if not is_grey]
    if "font-color" in found:
        values["ink"] = found["font-color"][0]
    papers = [found[name][0] for name in names[1:] if name in found]
    if papers:
        values["paper"] = papers[0]
        if papers[-1] != papers[0]:
            notes.append("page-bg-color: a page is of one grey, that of para-bg-color")
    return notes


def _left_out(left: dict[str, object]) -> list[str]:
    off = [name for name, value in left.items() if name in NOT_HERE and not value]
    asked = {n: why for n, why in NOT_HERE.items() if n in left and n not in off}
    unknown = [name for name in left if name not in (*NOT_HERE, "para-border-color")]
    notes = [f"{name}: {why}" for name, why in asked.items()]
    return notes + [f"{name}: no such page setting here" for name in unknown]


def _number(value: object, where: str) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise UserError(f"{where}: {value!r:.80} is not a number of points")
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r:.80} is not a text")
    return value


def _page_size(value: object, where: str) -> tuple[float, float]:
    """Of "595,842" or [595, 842]."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 2:
        raise UserError(f"{where}: {value!r:.80} is not WIDTH,HEIGHT in points")
    return _number(parts[0], where), _number(parts[1], where)


def _alignment(value: object, where: str) -> str:
    """LEFT, TA_CENTER, justify, ..."""
    name = _text(value, where).lower().removeprefix("ta_").removesuffix("ified")
    name = {"justif": "justify", "justify": "justify", "centre": "center"}.get(name, name)
    if name not in ("left", "right", "center", "justify"):
        raise UserError(f"{where}: {value!r:.80} is not LEFT, CENTER, RIGHT or JUSTIFY")
    return name


def _colour(value: object, where: str) -> tuple[int, bool]:
    """(grey by ITU-R 601 luma, whether it was one) of #RRGGBB."""
    match = re.fullmatch(r"(?:#|0x)?([0-9a-fA-F]{6})", value if isinstance(value, str) else "")
    if not match:
        raise UserError(f"{where}: {value!r:.80} is not a colour #RRGGBB")
    red, green, blue = bytes.fromhex(match[1])
    return round(0.299 * red + 0.587 * green + 0.114 * blue), red == green == blue
