"""The page style of a run: settings, and where they leave it open what the model was trained with.

In: page settings, the model's text settings, the side of its pages. Out: a `PageStyle`, checked.
The one idea: what has the same name in both is passed on as it is.
"""

from dataclasses import fields

from ..errors import UserError
from ..model.shape.config import TextConfig
from ..pages.fonts.font import FontChain
from ..pages.style import PageStyle
from ..settings import PageSettings


def page_style(page: PageSettings, trained_with: TextConfig, side: int, most: int) -> PageStyle:
    """The style of square pages of `side` px, of which no text may have more than `most`, unless
    the settings say another number. In gundam, letters on tiles are as large as on such a page.
    Raises UserError."""
    same = {f.name for f in fields(PageStyle)} & {f.name for f in fields(page)}
    values = {name: getattr(page, name) for name in same}
    values["font_size"] = page.font_size or trained_with.font_size or max(10, side // 64)
    values["line_height"] = page.line_height or trained_with.line_height or 1.25
    values["max_pages"] = page.max_pages or most
    if page.on_missing == "error":
        values["shaping"] = "require"
    margins = (page.margin, trained_with.margin, side // 32)
    values["margin"] = next(margin for margin in margins if margin >= 0)
    try:
        style = PageStyle(width=side, height=side, fonts=page.font, **values)
        FontChain(style.sources(), style.font_size)  # a font that cannot be used is found now
    except (ValueError, OSError) as error:
        raise UserError(f"page settings: {error}") from None
    return style
