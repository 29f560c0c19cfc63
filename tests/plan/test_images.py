"""An image on paper is the image that each family's own processor makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig

from genrecal.data.inputs import encode_prompt
from genrecal.models.families import FAMILIES
from genrecal.models.processors import load_processor
from genrecal.plan.images import IMAGES, image_tokens
from tests.tiny_families import TILE

# An image that the tiny families cut into a whole grid, and the tiles that make it, the overview included.
SIZES = {
    "gemma3": ((TILE, TILE), 1),
    "idefics3": ((2 * TILE, 2 * TILE), 5),
    "internvl": ((2 * TILE, TILE), 3),
    "internvl_llama": ((2 * TILE, TILE), 3),
    "llava_onevision": ((2 * TILE, 2 * TILE), 5),
    "qwen2_5_vl": ((48, 48), 1),
    "qwen2_vl": ((48, 48), 1),
    "qwen3_vl": ((48, 48), 1),
    "smolvlm": ((2 * TILE, 2 * TILE), 5),
}


@pytest.mark.parametrize("name", SIZES)
def test_as_the_processor_makes_it(name: str, family_folders: dict[str, Path]) -> None:
    folder = family_folders[name]
    processor, config = load_processor(folder), AutoConfig.from_pretrained(folder)
    (width, height), tiles = SIZES[name]
    picture = Image.effect_noise((width, height), 90).convert("RGB")
    prompt = encode_prompt(processor, [{"role": "user", "content": [{"type": "image"}]}], [picture])
    planned = image_tokens(config, tiles=tiles, pixels=width * height)
    stand_for = config.image_token_id
    assert planned.ids.count(stand_for) == int((prompt.ids == stand_for).sum())
    assert planned.vision.keys() == prompt.vision.keys() - {"num_crops", "batch_num_images"}
    for key, value in planned.vision.items():
        assert value.shape == prompt.vision[key].shape, key


def test_every_family_is_known() -> None:
    assert IMAGES.keys() == FAMILIES.keys()
