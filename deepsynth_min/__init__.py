"""deepsynth_min: fine-tune DeepSeek-OCR to read rendered text, in plain PyTorch.

The modules in the order in which data flows through them; none imports one that stands below it:

settings   config, settings
pages      characters, font, style, glyphs, shaping, prepare, render, preview
documents  grammar, corpus, tokenizer
data       loss, batch, images, order, index, rows, data
model      encoder, decoder, weights, quant, model
training   lora, adapter, freeze, precision, optim, distributed, checkpoint, build, evaluate,
           generate, report, run_directory, metrics, train, export, hub
"""

__version__ = "0.1.0"
