"""deepsynth_min: fine-tune DeepSeek-OCR to read rendered text, in plain PyTorch.

README.md beside this file is the map: which folder holds what, what to read first, how to change X.
"""

__version__ = "0.1.0"
