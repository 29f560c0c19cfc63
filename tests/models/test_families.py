"""FAMILIES says the truth about every family's model and processor."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

from genrecal.core.errors import ModelError
from genrecal.models.families import (
    FAMILIES,
    family_of,
    family_of_processor,
    is_vision_encoder,
    segment_of,
)
from genrecal.models.processors import load_model, load_processor
from genrecal.models.vlm import body_features, text_body
from tests.families import NAMES, ReadFamily
from tests.tiny import TinyPair
from tests.tiny_families import WRITERS, write_family
from tests.train.conftest import folder_hash


def test_every_family_has_a_tiny_vlm(family_folders: dict[str, Path]) -> None:
    assert tuple(WRITERS) == NAMES
    kinds = {name: load_model(folder).config for name, folder in family_folders.items()}
    # NVLM-D is written by the converter from its authors' layout: tests/convert
    assert {config.model_type for config in kinds.values()} == set(FAMILIES) - {"nvlm_d"}
    assert kinds["internvl"].get_text_config().model_type == "qwen2"
    assert kinds["internvl_llama"].get_text_config().model_type == "llama"


def test_two_calls_write_the_same_bytes(family: ReadFamily, tmp_path: Path) -> None:
    assert folder_hash(write_family(family.name, tmp_path / family.name)) == folder_hash(family.folder)


def test_every_parameter_belongs_to_one_segment(family: ReadFamily) -> None:
    model = family.model()
    kind = family_of(model.config)
    segments = Counter(segment_of(name, kind) for name, _ in model.named_parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    expected = {"vision_encoder", "vision_projector", "embedding", "body"} | (set() if tied else {"head"})
    assert set(segments) == expected and segments["embedding"] == 1
    for name, _ in model.named_parameters():
        assert is_vision_encoder(name, kind) == (segment_of(name, kind) == "vision_encoder")
    for prefix in kind.vision_projector:
        assert any(name.startswith(prefix) for name, _ in model.named_parameters()), prefix


@torch.no_grad()
def test_a_saved_model_is_the_same_model(family: ReadFamily, tmp_path: Path) -> None:
    """Saved from its parameters by name, as a stage saves its student; the file keeps its names."""
    model, batch = family.model(), family.batch()
    for parameter in model.parameters():
        parameter.add_(0.01)
    model.save_pretrained(tmp_path, state_dict=dict(model.named_parameters()))
    again = load_model(tmp_path)
    assert torch.equal(body_features(model, batch), body_features(again, batch))
    assert torch.equal(model.get_output_embeddings().weight, again.get_output_embeddings().weight)
    saved, first = (load_file(folder / "model.safetensors") for folder in (tmp_path, family.folder))
    assert saved.keys() == first.keys()


def test_text_body_is_what_the_head_stands_on(family: ReadFamily) -> None:
    model = family.model()
    body = text_body(model)
    assert len(body.layers) == model.config.get_text_config().num_hidden_layers
    assert body.embed_tokens is model.get_input_embeddings()
    assert not any("vision" in name or "visual" in name for name, _ in body.named_modules())


def test_a_parameter_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"'model\.audio_tower\.weight' belongs to no segment"):
        segment_of("model.audio_tower.weight", FAMILIES["qwen2_vl"])


def test_processors_are_known_by_their_class(family: ReadFamily) -> None:
    kind = family_of_processor(family.processor)
    assert kind is family_of(family.model().config)
    assert isinstance(family.processor.tokenizer, PreTrainedTokenizerFast)
    assert not type(family.processor.image_processor).__name__.endswith("Fast")
    assert family.processor.attributes == ["image_processor", "tokenizer"]


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_nothing_wants_torchvision(family: ReadFamily) -> None:
    assert family.model() is not None and "torchvision" not in sys.modules


def test_no_two_tokenizers_are_alike(family_folders: dict[str, Path]) -> None:
    entries = {name: load_processor(folder).tokenizer.get_vocab() for name, folder in family_folders.items()}
    texts = {name: frozenset(vocabulary) for name, vocabulary in entries.items()}
    assert len(set(texts.values())) == len(NAMES)


def test_unknown_family_is_one_line(tiny_pair: TinyPair) -> None:
    config = load_model(tiny_pair.student).config
    config.model_type = "llava"
    with pytest.raises(
        ModelError, match=r"^'llava' is no known VLM family\. Known are: .*qwen2_vl"
    ) as caught:
        family_of(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"^'SimpleNamespace' is the processor of no known VLM family"):
        family_of_processor(SimpleNamespace())


@pytest.mark.parametrize("load", [load_model, load_processor])
def test_wrong_model_folders_are_one_line(tmp_path: Path, load: Any) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
