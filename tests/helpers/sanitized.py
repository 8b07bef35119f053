"""Run tests with an extension built with sanitizers: `sanitized.py _raster.so ARGUMENTS`.

Needs LD_PRELOAD of the sanitizer's runtime; see test_render_fuzz.py, which starts it.
"""

import importlib.util
import sys

import pytest

spec = importlib.util.spec_from_file_location("deepsynth_min._raster", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules[spec.name] = module
from deepsynth_min.pages.fonts import font_file  # noqa: E402, after the extension's path is known

font_file._PACKAGES.clear()  # as conftest.py does, which is not loaded here
raise SystemExit(pytest.main(sys.argv[2:]))
