"""Pages and token ids -> logits, or a loss as (sum, count)."""

from .batch import Batch
from .deepseek_ocr import DeepseekOCR
from .shape.config import ModelConfig
from .shape.presets import PRESETS

__all__ = ["PRESETS", "Batch", "DeepseekOCR", "ModelConfig"]
