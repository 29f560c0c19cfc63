"""Weights from disk by the model's names: shards, pickles, older names, ties, and folders that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrecal.core.errors import ModelError
from genrecal.export.skeleton import load_skeleton, load_streamed
from genrecal.export.weights import CheckpointWeights
from genrecal.models.processors import load_model

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def copy(student_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student_folder, tmp_path / "copy")


def test_shards_are_the_same_weights(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / SINGLE)
    names = sorted(weights)
    shards = shutil.copytree(copy, tmp_path / "shards")
    (shards / SINGLE).unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, shards / file)
    index = {name: file for file, part in parts.items() for name in part}
    (shards / INDEX).write_text(json.dumps({"weight_map": index}))
    for folder in (copy, shards):
        found = CheckpointWeights(folder, {})
        assert sorted(found) == names
        assert all(torch.equal(found.read(name), weights[name]) for name in names)
        assert all(found.shape(name) == tuple(weights[name].shape) for name in names)
    (shards / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks the file 'b\.safetensors', which its index names"):
        CheckpointWeights(shards, {})
    (shards / INDEX).write_text(json.dumps({"weight_map": index | {names[0]: "../copy/model.safetensors"}}))
    with pytest.raises(ModelError, match=r"names '\.\./copy/model\.safetensors', which is not in the folder"):
        CheckpointWeights(shards, {})


def test_pickles_are_not_opened(copy: Path) -> None:
    torch.save(load_file(copy / SINGLE), copy / "pytorch_model.bin")
    (copy / SINGLE).unlink()
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model\.bin\), which are not opened"):
        CheckpointWeights(copy, {})


@pytest.mark.parametrize("newer", [False, True])
def test_names_of_all_ages_and_ties_find_their_weights(copy: Path, newer: bool) -> None:
    """As transformers writes them, which is as Qwen published them, and as its modules are named now."""
    weights = load_file(copy / SINGLE)
    assert "lm_head.weight" not in weights and "visual.merger.mlp.0.weight" in weights
    if newer:
        renamed = {
            name.replace("model.", "model.language_model.", 1)
            if name.startswith("model.")
            else f"model.{name}": weight
            for name, weight in weights.items()
        }
        save_file(renamed, copy / SINGLE, metadata={"format": "pt"})
    skeleton = load_skeleton(copy, torch.float32)
    sources = set(skeleton.sources.values())
    assert len(sources) == len(weights) and all(name in skeleton.weights for name in sources)
    head = skeleton.names(skeleton.model.lm_head)
    assert set(head.values()) == {"model.language_model.embed_tokens.weight"}
    assert sum(parameter.numel() for parameter in skeleton.model.parameters()) == len(skeleton.sources)


def test_a_streamed_model_computes_what_a_loaded_one_does(student_folder: Path) -> None:
    ids_1S = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = load_model(student_folder, dtype=torch.float32)(input_ids=ids_1S).logits
        model = load_streamed(student_folder, torch.float32)
        assert torch.equal(model(input_ids=ids_1S).logits, expected)
    held = [name for name, weight in model.named_parameters() if weight.device.type != "meta"]
    assert all(name.endswith("anchor") for name in held)


def test_weights_that_are_missing_or_of_other_shapes(copy: Path) -> None:
    weights = load_file(copy / SINGLE)
    stored, name = "model.layers.1.mlp.up_proj.weight", "model.language_model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in weights.items() if key != stored}, copy / SINGLE)
    with pytest.raises(ModelError, match=f"lacks weights: {name}. Is the download complete"):
        load_skeleton(copy, torch.float32)
    save_file(weights | {stored: weights[stored][:-1].contiguous()}, copy / SINGLE)
    with pytest.raises(ModelError, match=f"holds weights of other shapes: {name} is"):
        load_skeleton(copy, torch.float32)
    (copy / SINGLE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="holds no readable weights"):
        load_skeleton(copy, torch.float32)
    (copy / SINGLE).unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_skeleton(copy, torch.float32)
