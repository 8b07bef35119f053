"""Pages and token ids -> logits, or a loss as (sum, count)."""

from .batch import Batch
from .config import ModelConfig
from .deepseek_ocr import DeepseekOCR
from .presets import PRESETS

__all__ = ["PRESETS", "Batch", "DeepseekOCR", "ModelConfig"]
