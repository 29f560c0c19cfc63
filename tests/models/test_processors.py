"""A folder without all the weights of its model is no model: transformers would draw them at random."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from genrecal.core.errors import ModelError
from genrecal.models.processors import load_model
from tests.tiny import TinyPair

WEIGHTS = "model.safetensors"


def without(source: Path, folder: Path, part: str) -> Path:
    """A copy of the model in `source` whose weights with `part` in their names are gone."""
    shutil.copytree(source, folder)
    weights = load_file(source / WEIGHTS)
    kept = {name: weight for name, weight in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_a_checkpoint_without_its_projector(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = without(tiny_pair.teacher, tmp_path / "teacher", "multi_modal_projector")
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "lacks weights of InternVLForConditionalGeneration" in str(caught.value)
    assert "model.multi_modal_projector.layer_norm.bias" in str(caught.value)
    assert "and 1 more" in str(caught.value)


def test_one_missing_layer_of_many(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = without(tiny_pair.student, tmp_path / "student", "layers.1.mlp.up_proj")
    with pytest.raises(
        ModelError, match=r"lacks weights of .*: model\.language_model\.layers\.1\.mlp\.up_proj"
    ):
        load_model(folder)


def test_a_head_that_is_tied_is_not_missing(tiny_pair: TinyPair) -> None:
    names = load_file(tiny_pair.student / WEIGHTS).keys()
    assert not any("lm_head" in name for name in names)
    assert load_model(tiny_pair.student).config.tie_word_embeddings
    assert load_model(tiny_pair.teacher).lm_head is not None


def test_without_weights_at_all(tiny_pair: TinyPair, tmp_path: Path) -> None:
    shutil.copytree(tiny_pair.teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="its model cannot be loaded"):
        load_model(tmp_path / "teacher")
