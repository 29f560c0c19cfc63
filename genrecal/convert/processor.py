"""The authors' preprocessing -> the settings of transformers' own processors.

Their code cuts tiles, scales and normalises by constants; GotOcr2ImageProcessor does the same by settings. It
cuts an image of one tile and more alike, overview included (tests/convert/test_tiles.py compares the two).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GotOcr2ImageProcessor, InternVLProcessor

import genrecal.models.processors  # noqa: F401  (InternVLProcessor can be built without torchvision)
from genrecal.convert.model_config import tile_size, tokens_per_tile
from genrecal.convert.source import Source
from genrecal.core.errors import ModelError
from genrecal.core.files import read_json
from genrecal.models.nvlm_processor import NvlmProcessor

FILE = "preprocessor_config.json"
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
# What that file may say beside their constants; other values would mean another model than we know.
EXPECTED = {"image_mean": MEAN, "image_std": STD, "resample": 3, "do_normalize": True}


def convert_processor(source: Source, tokenizer: Any) -> Any:
    """The processor of `source` around its converted tokenizer.

    Raises:
        ModelError: preprocessing that the native image processor cannot do.
    """
    smallest, largest = _tiles(source)
    _check_file(source.folder / FILE)
    edge = tile_size(source)
    image_processor = GotOcr2ImageProcessor(
        crop_to_patches=largest > 1,
        min_patches=smallest,
        max_patches=largest,
        size={"height": edge, "width": edge},
        image_mean=MEAN,
        image_std=STD,
    )
    parts = {"image_processor": image_processor, "tokenizer": tokenizer}
    kind = NvlmProcessor if source.layout == "NVLM_D" else InternVLProcessor
    if "video_processor" in kind.attributes:  # where torchvision is there
        from transformers import InternVLVideoProcessor

        parts["video_processor"] = InternVLVideoProcessor(size={"height": edge, "width": edge})
    return kind(**parts, image_seq_length=tokens_per_tile(source), chat_template=tokenizer.chat_template)


def _tiles(source: Source) -> tuple[int, int]:
    """Tiles of an image at the least and at the most, without the overview."""
    config, where = source.config, source.folder / "config.json"
    if not config.get("dynamic_image_size", False):
        return 1, 1
    smallest, largest = config.get("min_dynamic_patch", 1), config.get("max_dynamic_patch", 6)
    if not 1 <= smallest <= largest:
        raise ModelError(f"takes {smallest} to {largest} tiles", where=where)
    if largest > 1 and not config.get("use_thumbnail", False):
        raise ModelError(
            "use_thumbnail is off; the native image processor always adds the overview", where=where
        )
    return smallest, largest


def _check_file(path: Path) -> None:
    if not path.is_file():
        return
    settings = read_json(path)
    for key, value in EXPECTED.items():
        if settings.get(key, value) != value:
            raise ModelError(f"{key} is {settings[key]}, not {value}", where=path)
