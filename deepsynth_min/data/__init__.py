"""Files -> rows -> samples -> batches, in an exact order."""

from .loader import Loader
from .samples import SampleBuilder

__all__ = ["Loader", "SampleBuilder"]
