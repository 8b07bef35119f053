"""deepsynth_min: fine-tune DeepSeek-OCR to read rendered text, in plain PyTorch.

The modules in the order in which data flows through them; imports point upwards:

settings   config, presets, disk, options, settings
pages      characters, font, style, glyphs, shaping, prepare, render, preview
documents  grammar, corpus, tokenizer
data       loss, batch, images, order, index, download, row, parquet, rows, data
model      norm, encoder, experts, decoder, weights, quant, model
tuning     lora, adapter, freeze, precision, compiling, optim, distributed, checkpoint, build, shard
reading    search, ablations, text_metrics, evaluate, generate
the run    features, augment, charts, report, sinks, run_directory, saving, metrics, hub, export,
           train
recipe     random_text, reading, guide, curriculum, tiny_reader
"""

__version__ = "0.1.0"
