"""Which parameters train: freezing, LoRA, a quantised base, adapter files."""

from .lora import LoraConfig, attach

__all__ = ["LoraConfig", "attach"]
