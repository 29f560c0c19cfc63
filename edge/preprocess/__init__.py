"""An image as its vision encoder reads it, equal to the family's slow (PIL) Hugging Face processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edge.preprocess import idefics3, internvl, llava_onevision, qwen2_vl
from edge.preprocess.picture import Picture

__all__ = ["PREPROCESSORS", "Picture", "Preprocessor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """How one family reads its settings and prepares an image."""

    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    """preprocessor_config.json, config.json -> settings."""
    prepare: Callable[[Image.Image, Any, bool], Picture]
    """image, settings, whether it is the only image of the conversation -> picture."""
    tilewise: bool = False
    """Whether a tile's features depend on that tile alone, so that tiles can be encoded a few at a time."""


# family, as the manifest names it -> its preprocessing
PREPROCESSORS: dict[str, Preprocessor] = {
    "idefics3": Preprocessor(read=idefics3.read, prepare=idefics3.prepare, tilewise=True),
    "internvl": Preprocessor(read=internvl.read, prepare=internvl.prepare, tilewise=True),
    "llava_onevision": Preprocessor(read=llava_onevision.read, prepare=llava_onevision.prepare),
    "qwen2_5_vl": Preprocessor(read=qwen2_vl.read, prepare=qwen2_vl.prepare),
    "qwen2_vl": Preprocessor(read=qwen2_vl.read, prepare=qwen2_vl.prepare),
    "smolvlm": Preprocessor(read=idefics3.read, prepare=idefics3.prepare, tilewise=True),
}
