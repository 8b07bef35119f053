"""Settings -> the files and folders that they name.

In: a run's settings. Out: names as given, and where they lie. A run's config.toml keeps the places
(config_file.py); the page to try a model on lets none lead out of its folder (app_parts/safety.py).
"""

import os

from ...corpus.families import family_of
from ...data.sources import weighted
from ...errors import UserError
from ...model.shape.presets import PRESETS, TINY_READER
from ...pages import vary
from ...pages.fonts.font_file import EMBEDDED, parse
from ...settings import Settings


def named_files(settings: Settings) -> list[tuple[str, str]]:
    """(setting, name) of what a run would read: files and folders, here or on the hub; none of the
    package's own. Raises UserError for names that cannot be one."""
    model, data, page = settings.model.model, settings.data, settings.page
    if model in PRESETS or model == TINY_READER and not os.path.isdir(model):  # which comes first
        model = ""
    fonts = [page.main_font, *page.font]
    for words in (settings.augment.vary, settings.evaluation.unseen_style):
        drawn = [one.values for one in vary.parse(words, "--vary") if one.name == "main_font"]
        fonts += [font for values in drawn for font in values]
    try:
        fonts = [parse(font).file for font in fonts]
    except ValueError as error:
        raise UserError(f"--font: {error}") from None
    rows = [("data", weighted(name)[0]) for name in data.data] + [("val_data", data.val_data)]
    found = [("adapter", settings.adapter.adapter), ("model", model)]
    found += [(setting, name) for setting, name in rows if family_of(name) is None]
    found += [("font", file) for file in fonts if file not in EMBEDDED]
    return [(setting, name) for setting, name in found if name]


def places(settings: Settings) -> dict[str, str]:
    """Name as given -> absolute path, of the files and folders that settings name and that are
    there; no hub ids."""
    found = [name for _, name in named_files(settings) if os.path.lexists(name)]
    cache = settings.data.feature_cache
    found += [cache] if cache not in ("off", "memory") else []
    return {name: os.path.abspath(name) for name in found}
