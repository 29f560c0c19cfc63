"""What only NVLM-D has: tile tags, padded vision heads, a projector of its own width."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from genrecal.convert.checkpoint import convert
from genrecal.convert.padding import PaddingCheck
from genrecal.core.errors import ModelError
from genrecal.core.files import read_json
from genrecal.models.nvlm import NvlmConfig, NvlmForConditionalGeneration, register_nvlm
from genrecal.models.nvlm_processor import NvlmProcessor
from genrecal.models.processors import load_processor
from tests.convert.conftest import Converted
from tests.convert.reference import picture

PAD = "<|vision_pad|>"


def test_the_auto_classes_know_it(nvlm: Converted) -> None:
    register_nvlm()
    model = AutoModelForImageTextToText.from_pretrained(nvlm.folder)
    assert type(model) is NvlmForConditionalGeneration and type(model.config) is NvlmConfig
    assert read_json(nvlm.folder / "processor_config.json")["processor_class"] == "NvlmProcessor"
    assert type(AutoProcessor.from_pretrained(nvlm.folder, use_fast=False)) is NvlmProcessor


def test_the_projector_is_as_wide_as_the_mlp(nvlm: Converted) -> None:
    projector = nvlm.model().model.multi_modal_projector
    source = read_json(nvlm.reference.source / "config.json")
    assert projector.linear_1.out_features == source["llm_config"]["intermediate_size"]
    assert projector.linear_1.bias is None and projector.linear_2.bias is None


def test_tags_stand_before_their_tiles(nvlm: Converted) -> None:
    processor = nvlm.processor()
    assert processor.image_text(1) == f"<Image><tile_global_thumbnail>{PAD * 4}</Image>"
    expected = f"<Image><tile_1>{PAD * 4}<tile_2>{PAD * 4}<tile_global_thumbnail>{PAD * 4}</Image>"
    assert processor.image_text(3) == expected
    assert expected in nvlm.reference.prompt("two")  # where the authors' code wrote it


def test_fewer_tiles_by_a_limit(nvlm: Converted) -> None:
    processor = load_processor(nvlm.folder, max_tiles=1)
    encoded = processor(text=[f"a {PAD} b"], images=[picture(100, 30)], return_tensors="pt")
    assert encoded["pixel_values"].shape == (1, 3, 28, 28)
    assert (encoded["input_ids"] == processor.image_token_id).sum() == 4


@pytest.mark.parametrize("images", [[], [picture(28, 28)] * 2])
def test_images_and_tokens_must_be_as_many(nvlm: Converted, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match=f"1 image tokens in the prompts, {len(images)} images"):
        nvlm.processor()(text=f"a {PAD} b", images=images or None)


def test_no_text_and_videos_are_errors(nvlm: Converted) -> None:
    with pytest.raises(ValueError, match="reads text"):
        nvlm.processor()(images=[picture(28, 28)])
    with pytest.raises(ValueError, match="reads text"):
        nvlm.processor()(text="a", videos=[picture(28, 28)])


def test_a_channel_in_use_on_both_sides_is_found_in_either_order() -> None:
    values, output = torch.zeros(15, 3), torch.zeros(3, 5)  # 3 real channels, 2 padded ones
    values[13, 1] = 1.0  # of the values, the first padded channel
    output[2, 4] = 1.0  # of the output, the second
    names = (
        "vision_model.encoder.layers.7.attn.qkv.weight",
        "vision_model.encoder.layers.7.attn.proj.weight",
    )
    check = PaddingCheck(3)
    for name, weight in zip(names, (values, output), strict=True):
        check.see(name, weight)
    output[0, 3] = 1.0
    for order in (1, -1):
        check = PaddingCheck(3)
        pairs = list(zip(names, (values, output), strict=True))[::order]
        check.see(*pairs[0])
        with pytest.raises(ModelError, match="heads behind the 3 channels are in use"):
            check.see(*pairs[1])
        # The same channels in another layer are another matter.
        check.see(pairs[1][0].replace(".7.", ".8."), pairs[1][1])


def test_padding_in_use_stops_the_conversion(nvlm: Converted, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(nvlm.reference.source, source)
    for shard in source.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if name.endswith("layers.1.attn.qkv.weight"):
                tensor[-1] = 1.0
            if name.endswith("layers.1.attn.proj.weight"):
                tensor[:, -1] = 1.0
        save_file(tensors, shard)
    with pytest.raises(ModelError, match="are in use, so they cannot be left out"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
