"""Processors and models from a folder, without torchvision and without remote code."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    AutoVideoProcessor,
    Idefics3Processor,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.utils import is_torchvision_available

from genrecal.core.errors import ModelError
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME
from genrecal.models.families import FAMILIES
from genrecal.models.image_limits import limit_pixels, limit_tiles
from genrecal.models.nvlm import register_nvlm
from genrecal.models.nvlm_processor import NvlmProcessor
from genrecal.models.pickles import require_safetensors
from genrecal.models.remote_code import RemoteCode, check_remote_code


class SmolVLMProcessor(Idefics3Processor):
    """SmolVLM's processor for images, which is Idefics3's with another image processor.

    transformers' own cannot be imported without torchvision, nor built without num2words; both serve videos.
    """

    image_processor_class = "SmolVLMImageProcessor"


NAMED = 5  # weights that an error names

# Classes of our own, by the name that a family and a folder give them.
OWN_PROCESSORS: dict[str, type] = {"NvlmProcessor": NvlmProcessor, "SmolVLMProcessor": SmolVLMProcessor}
# transformers has no NVLM-D; its Auto classes learn of ours here.
register_nvlm()

if not is_torchvision_available():
    # The video half of these processors needs torchvision. Images do not, so it is left out where
    # torchvision is missing; with it, transformers' own declaration stays.
    for family in FAMILIES.values():
        if family.processor not in OWN_PROCESSORS:
            getattr(transformers, family.processor).attributes = ["image_processor", "tokenizer"]


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


def load_processor(
    folder: Path,
    *,
    max_tiles: int | None = None,
    max_pixels: int | None = None,
    code: RemoteCode | None = None,
) -> Any:
    """The processor of a model folder: the PIL image processor and the fast tokenizer.

    Args:
        folder: the model's folder; its files stay as they are.
        max_tiles: tiles that an image is cut into at the most, in families that cut images; the overview of
            the whole image is not counted. None: as the folder says.
        max_pixels: pixels of an image at the most, in families that read images in their own size.
        code: whether the folder's own code may run; None: it may not.

    Raises:
        ModelError: no processor can be loaded.
        ConfigError: a limit that leaves no image.
    """
    check_model_folder(folder)
    allowed = check_remote_code(folder, code or RemoteCode()).options
    try:
        processor = _read_processor(folder, allowed)
    except Exception as error:  # whatever a damaged or foreign file makes the libraries raise
        raise ModelError(f"its processor cannot be loaded ({_one_line(error)})", where=folder) from error
    if max_tiles is not None:
        processor.image_processor = limit_tiles(processor.image_processor, max_tiles)
    if max_pixels is not None:
        limit_pixels(processor.image_processor, max_pixels)
    return processor


def _read_processor(folder: Path, allowed: dict[str, Any]) -> Any:
    # Part by part: AutoProcessor has one `use_fast` for both, and the slow tokenizer that comes with the PIL
    # image processor reads another pre-tokenizer than the one in tokenizer.json, where it can be read at all.
    kind = _processor_class(read_json(folder / "config.json")["model_type"])
    load = {
        "image_processor": lambda: AutoImageProcessor.from_pretrained(folder, use_fast=False, **allowed),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(folder, **allowed),
        "video_processor": lambda: AutoVideoProcessor.from_pretrained(folder, **allowed),
    }
    settings, _ = kind.get_processor_dict(folder)
    return kind.from_args_and_dict([load[part]() for part in kind.attributes], settings)


def _processor_class(model_type: str) -> Any:
    name = FAMILIES[model_type].processor if model_type in FAMILIES else PROCESSOR_MAPPING_NAMES[model_type]
    return OWN_PROCESSORS[name] if name in OWN_PROCESSORS else getattr(transformers, name)


def load_model(folder: Path, *, code: RemoteCode | None = None, **options: Any) -> Any:
    """The image-text-to-text model of a folder, in evaluation mode; `code` as in `load_processor`.

    Raises:
        ModelError: no model can be loaded, or the folder lacks weights of its class. transformers would draw
            them at random and say so in a warning.
    """
    check_model_folder(folder)
    require_safetensors(folder)
    allowed = check_remote_code(folder, code or RemoteCode()).options
    try:
        with _no_new_embeddings():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, **allowed, **options
            )
    except Exception as error:  # as above
        raise ModelError(f"its model cannot be loaded ({_one_line(error)})", where=folder) from error
    model, loading = loaded
    _require_weights(folder, type(model).__name__, loading["missing_keys"])
    _restore_frequencies(model)
    return model.eval()


def _require_weights(folder: Path, kind: str, missing: Collection[str]) -> None:
    """Raise a ModelError if `missing` names any; weights that are tied to others are none of them."""
    if missing:
        named = ", ".join(sorted(missing)[:NAMED])
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        raise ModelError(
            f"lacks weights of {kind}: {named}{more}",
            where=folder,
            fix="Is the download complete, and is config.json this checkpoint's?",
        )


@contextmanager
def _no_new_embeddings() -> Iterator[None]:
    """While this is open, transformers draws no new weights for Gemma 3's word embeddings.

    Version 4.57 takes a module with an unsaved buffer for one whose weights are missing, and under ZeRO-3 it
    then writes to a row of weights that are split over the ranks: an IndexError.
    """
    kind: Any = Gemma3TextScaledWordEmbedding
    kind._is_hf_initialized = True
    try:
        yield
    finally:
        del kind._is_hf_initialized


def _restore_frequencies(model: Any) -> None:
    """Rotary frequencies of Qwen's vision encoders anew: DeepSpeed makes them in the weights' precision.

    They are not saved, so nothing is read into them. In bf16 the encoder would see other positions under
    ZeRO-3 than it does anywhere else.
    """
    for module in model.modules():
        if type(module).__name__.endswith("VisionRotaryEmbedding"):
            frequencies = type(module)(2 * len(module.inv_freq)).inv_freq
            module.inv_freq = frequencies.to(module.inv_freq.device)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
