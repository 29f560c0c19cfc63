"""Processors and models from a folder, without torchvision and without remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    InternVLProcessor,
    Qwen2VLProcessor,
)
from transformers.utils import is_torchvision_available

from genrecal.core.errors import ModelError
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME

if not is_torchvision_available():
    # The video half of these processors needs torchvision. Images do not, so it is left out where
    # torchvision is missing; with it, transformers' own declaration stays.
    for processor_class in (Qwen2VLProcessor, InternVLProcessor):
        processor_class.attributes = ["image_processor", "tokenizer"]


def check_model_folder(folder: Path) -> None:
    """Raise a ModelError unless `folder` looks like what `save_pretrained` writes."""
    if not folder.is_dir():
        raise ModelError("no such model folder", where=folder)
    if not (folder / "config.json").is_file():
        raise ModelError("has no config.json", where=folder, fix="Name a folder written by save_pretrained")
    if (folder / NAME).is_file() and read_json(folder / NAME).get("kind") == "build":
        raise ModelError(
            "is an edge build, not a checkpoint", where=folder, fix="Name the student it was made of"
        )


def load_processor(folder: Path) -> Any:
    """The processor of a model folder: the PIL image processor and the fast tokenizer."""
    check_model_folder(folder)
    try:
        # `use_fast=False` chooses the PIL image processor, and would also choose the slow tokenizer, which
        # reads another pre-tokenizer than the one in tokenizer.json.
        processor = AutoProcessor.from_pretrained(folder, use_fast=False, trust_remote_code=False)
        processor.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return processor
    except Exception as error:  # whatever a damaged or foreign file makes the libraries raise
        raise ModelError(f"its processor cannot be loaded ({_one_line(error)})", where=folder) from error


def load_model(folder: Path, **options: Any) -> Any:
    """The image-text-to-text model of a folder, in evaluation mode."""
    check_model_folder(folder)
    try:
        return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False, **options).eval()
    except Exception as error:  # as above
        raise ModelError(f"its model cannot be loaded ({_one_line(error)})", where=folder) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
