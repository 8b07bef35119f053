"""What several tests share: a model small enough for a test, and a few real documents."""

import json
import os
import signal

import pytest

# Test processes share the cores: each keeps to one, and so does what it starts. Two teams of
# threads on the same cores wait for each other more than they work. Before torch is imported, so
# that its threads know how many cores there are.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import torch
from small_model import SMALL

from deepsynth_min.corpus import documents as corpus
from deepsynth_min.model.shape.config import ModelConfig
from deepsynth_min.pages import renderer
from deepsynth_min.pages.fonts import font_file

torch.set_num_threads(1)

# Where tests run in the background of a script, Ctrl-C is ignored, by what they start as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests see the embedded fonts alone, whatever extras are installed, unless they ask for those.
FONT_PACKAGES = dict(font_file._PACKAGES)
font_file._PACKAGES.clear()


@pytest.fixture
def extra_fonts():
    """The fonts of installed extras, as users have them; skips where there are none."""
    for package in FONT_PACKAGES:
        pytest.importorskip(package, reason="needs the extras scripts and cjk")

    def forget():
        font_file.installed_fonts.cache_clear()
        renderer._renderer.cache_clear()
        renderer._measures.cache_clear()

    font_file._PACKAGES.update(FONT_PACKAGES)
    forget()
    yield
    font_file._PACKAGES.clear()
    forget()


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


# What takes longest is begun first, so that no process is left alone with it at the end.
LONGEST = ("training", "runs", "tiny_reader", "test_train.py", "files", "publish")
LONGEST += ("evaluation", "bench")


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        return next((LONGEST.index(p) for p in item.path.parts if p in LONGEST), len(LONGEST))

    items.sort(key=place)  # stable: a file's tests stay together
