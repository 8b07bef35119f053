"""train --dry-run: what it says is so, nothing is written, and mistakes are one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from commands import python, words
from run_files import newest
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.command_line import parse, parse_training
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.model.loss import CHUNK, chunked_cross_entropy
from deepsynth_min.options import change
from deepsynth_min.planning import dry_run
from deepsynth_min.planning.plan import _divided, logits_bytes, make
from deepsynth_min.planning.pretend import CUDA, on_paper
from deepsynth_min.planning.roofline import GPUS
from deepsynth_min.settings import Settings

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def same_rows(tmp_path_factory) -> Path:
    """Sixteen times the same row, so that every micro-batch is as heavy."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    document = corpus.documents("train")[0]
    row = json.dumps({"text": document.text[:300], "summary": document.summary})
    path.write_text(f"{row}\n" * 16, "utf-8")
    return path
