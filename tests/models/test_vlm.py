"""The cut embed -> body -> head, the families' parameter names, and LoRA with its merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.errors import ModelError
from genrecal.data.batch import Batch, collate
from genrecal.data.llava import read_llava
from genrecal.data.pair import PairReader
from genrecal.models.families import FAMILIES, family_of, is_vision_encoder
from genrecal.models.lora import LoraConfig, add_lora, merge_lora
from genrecal.models.processors import load_model, load_processor
from genrecal.models.vlm import answer_features, body_features, predicting_features, question_features
from tests.tiny import TinyData, TinyPair


@pytest.fixture(scope="module")
def batches(tiny_pair: TinyPair, tiny_data: TinyData) -> dict[str, Batch]:
    reader = PairReader(
        tuple(read_llava(tiny_data.path)),
        student=load_processor(tiny_pair.student),
        teacher=load_processor(tiny_pair.teacher),
        max_tokens=512,
    )
    batch = collate([reader[0], reader[4], reader[7]], student_padding=0, teacher_padding=0)
    assert batch.teacher is not None
    return {"student": batch.student, "teacher": batch.teacher}


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_head_of_the_features_is_the_models_own_logits(
    tiny_pair: TinyPair, batches: dict[str, Batch], side: str
) -> None:
    model, batch = load_model(getattr(tiny_pair, side)), batches[side]
    with torch.no_grad():
        ours = model.get_output_embeddings()(body_features(model, batch))
        theirs = model(
            input_ids=batch.input_ids_BS,
            attention_mask=batch.attention_mask_BS,
            use_cache=False,
            **batch.vision,
        ).logits
    real = batch.attention_mask_BS.bool()
    assert torch.equal(ours[real], theirs[real])


def test_features_are_cut_at_each_samples_own_border(batches: dict[str, Batch]) -> None:
    batch = batches["student"]
    positions = torch.arange(batch.input_ids_BS.shape[1], dtype=torch.float32)
    z_BSD = positions[None, :, None].expand(len(batch.input_ids_BS), -1, 2)
    assert question_features(z_BSD, batch).shape[1] == int(batch.question_lengths_B.max())
    for shift, cut in ((0, answer_features), (-1, predicting_features)):
        found = cut(z_BSD, batch)[:, :, 0]
        for sample, start in enumerate(batch.question_lengths_B.tolist()):
            count = int(batch.answer_mask_BA[sample].sum())
            assert found[sample, :count].tolist() == [start + shift + t for t in range(count)]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_family_names_cover_the_model(tiny_pair: TinyPair, side: str) -> None:
    model = load_model(getattr(tiny_pair, side))
    family = family_of(model.config)
    names = [name for name, _ in model.named_parameters()]
    for part in (family.vision_encoder, family.vision_projector, family.body):
        assert any(name.startswith(part) for name in names), part
    encoder = [name for name in names if is_vision_encoder(name, family)]
    assert encoder and not any(name.startswith((family.vision_projector, family.body)) for name in encoder)
    known = tuple(getattr(family, part) for part in ("vision_encoder", "vision_projector", "body"))
    assert all(name.startswith((*known, "lm_head.")) for name in names)


def test_unknown_family_is_one_line(tiny_pair: TinyPair) -> None:
    config = load_model(tiny_pair.student).config
    config.model_type = "llava"
    with pytest.raises(
        ModelError, match=r"^'llava' is no known VLM family\. Known are: .*qwen2_vl"
    ) as caught:
        family_of(config)
    assert "\n" not in str(caught.value) and set(FAMILIES) == {"internvl", "qwen2_vl"}


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


def lora_on(folder: Path) -> Any:
    student = load_model(folder)
    student.requires_grad_(False)
    torch.manual_seed(0)
    adapter = add_lora(student, LoraConfig(rank=4, alpha=8, dropout=0.0), family_of(student.config))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:  # starts at zero, and a merge of nothing would prove nothing
                parameter.normal_(std=0.2)
    return adapter


def test_lora_sits_on_every_projection_of_the_body_alone(tiny_pair: TinyPair) -> None:
    adapter = lora_on(tiny_pair.student)
    trained = [name for name, parameter in adapter.named_parameters() if parameter.requires_grad]
    assert all("language_model.layers" in name and ".lora_" in name for name in trained)
    layers = adapter.config.get_text_config().num_hidden_layers
    assert len(trained) == layers * 7 * 2  # q, k, v, o, gate, up, down; A and B


def test_merge_keeps_the_logits_and_says_by_how_much(
    tiny_pair: TinyPair, batches: dict[str, Batch], tmp_path: Path
) -> None:
    lora_on(tiny_pair.student).save_pretrained(tmp_path / "adapter")
    base = load_model(tiny_pair.student)
    merged, difference = merge_lora(base, tmp_path / "adapter", batches["student"], tolerance=1e-4)
    assert 0 <= difference < 1e-5
    fresh = load_model(tiny_pair.student)
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, fresh.get_parameter(name))}
    assert changed and all(name.startswith("model.language_model.layers.") for name in changed)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_a_merge_that_moves_the_logits_is_refused(
    tiny_pair: TinyPair, batches: dict[str, Batch], tmp_path: Path
) -> None:
    lora_on(tiny_pair.student).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="merging LoRA moves the logits"):
        merge_lora(load_model(tiny_pair.student), tmp_path / "adapter", batches["student"], tolerance=-1.0)
