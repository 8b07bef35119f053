"""What several tests share: a model small enough for a test, and a few real documents."""

import json
import os

import pytest
import torch

from deepsynth_min.corpus import documents as corpus
from deepsynth_min.model.config import ClipConfig, DecoderConfig, ModelConfig, SamConfig

# Test processes share the cores: each keeps to one, and so does what it starts. Two teams of
# threads on the same cores wait for each other more than they work.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
torch.set_num_threads(1)

# A quarter of `tiny`: every kind of layer once, the embedded tokenizer's vocabulary.
SMALL = ModelConfig(
    sam=SamConfig(
        width=32,
        layers=2,
        heads=2,
        image_size=128,
        window=3,
        global_layers=(1,),
        neck=16,
        downsample=(16, 32),
    ),
    clip=ClipConfig(width=32, layers=1, heads=2, image_size=28),
    decoder=DecoderConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
    ),
    page_size=128,
)


@pytest.fixture
def small_config() -> ModelConfig:
    return SMALL


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory):
    """A real data file of 24 documents, some of them long; to be read only."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"text": d.text, "summary": d.summary} for d in corpus.documents("train")[:24]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path
