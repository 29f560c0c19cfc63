"""A LoRA adapter merged before the export: the proof, and what it would notice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from genrecal.core.errors import ModelError
from genrecal.export import adapter as adapter_module
from genrecal.export import parity
from genrecal.export.adapter import merge_adapter
from genrecal.models.processors import load_model

QUERIES = parity.default_queries()[:2]


def write_adapter(student: Path, folder: Path, targets: str) -> Path:
    """An adapter whose matrices are random, B among them, which starts at zero."""
    model = get_peft_model(
        load_model(student, dtype=torch.float32), LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    return write_adapter(student_folder, folder, r"model\.language_model\..*\.(q_proj|down_proj)")


def test_the_merge_is_proven(student_folder: Path, adapter: Path, tmp_path: Path) -> None:
    found = merge_adapter(student_folder, adapter, tmp_path / "merged", QUERIES)
    assert found.layers == 2 * 3 and found.logits_difference < 1e-5
    before, after = (
        load_file(folder / "model.safetensors") for folder in (student_folder, tmp_path / "merged")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(before) == set(after) and len(changed) == found.layers
    assert len(before) - len(changed) == found.unchanged
    assert all("q_proj" in name or "down_proj" in name for name in changed)


def test_an_adapter_on_the_vision_encoder_is_refused(student_folder: Path, tmp_path: Path) -> None:
    folder = write_adapter(student_folder, tmp_path / "adapter", r"model\.visual\.blocks\.0\.attn\.proj")
    with pytest.raises(ModelError, match=r"changes the vision encoder: model\.visual\.blocks\.0\.attn\.proj"):
        merge_adapter(student_folder, folder, tmp_path / "merged", QUERIES)


def test_weights_that_change_unnamed_are_found(
    student_folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bit of one weight, which no comparison of logits would show."""

    def touched(folder: Path, **options: object) -> object:
        if folder == tmp_path / "merged":
            weights = load_file(folder / "model.safetensors")
            name = next(name for name in weights if "visual" in name and weights[name].ndim > 1)
            weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return load_model(folder, **options)

    monkeypatch.setattr(adapter_module, "load_model", touched)
    with pytest.raises(ModelError, match=r"merging changed '.*visual.*', which the adapter does not name"):
        merge_adapter(student_folder, adapter, tmp_path / "merged", QUERIES)


def test_logits_that_move_are_refused(
    student_folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merged student that is not the one with its adapter: here the student without it."""

    def unmerged(folder: Path, **options: object) -> object:
        return load_model(student_folder, **options)

    monkeypatch.setattr(adapter_module, "load_model", unmerged)
    with pytest.raises(ModelError, match="merging it moves the logits by"):
        merge_adapter(student_folder, adapter, tmp_path / "merged", QUERIES)


def test_other_folders_are_refused(student_folder: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no LoRA adapter \(adapter_config\.json\)"):
        merge_adapter(student_folder, student_folder, tmp_path / "merged", QUERIES)
    other = shutil.copytree(adapter, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["no_such_layer"]}))
    with pytest.raises(ModelError, match="does not fit the student"):
        merge_adapter(student_folder, other, tmp_path / "merged", QUERIES)
