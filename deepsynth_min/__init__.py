"""deepsynth_min: fine-tune DeepSeek-OCR to read rendered text, in plain PyTorch.

Read the modules in the order that data flows: config, font, render, corpus, data, encoder, decoder,
model, loss, freeze, optim, distributed, checkpoint, evaluate, generate, train.
"""

__version__ = "0.1.0"
