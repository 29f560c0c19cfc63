"""LoRA sits on the student's body alone, and its merge is proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.config import parse_config
from genrecal.core.errors import ConfigError, ModelError
from genrecal.models.families import family_of, segment_of
from genrecal.models.lora import PROJECTIONS, LoraConfig, add_lora, merge_lora
from tests.families import ReadFamily


def lora_on(student: Any, **settings: Any) -> Any:
    student.requires_grad_(False)
    torch.manual_seed(0)
    config = parse_config({"rank": 4, "alpha": 8, "dropout": 0.0, **settings}, LoraConfig, where="here")
    adapter = add_lora(student, config, family_of(student.config))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:  # starts at zero, and a merge of nothing would prove nothing
                parameter.normal_(std=0.2)
    return adapter


def trained(adapter: Any) -> list[str]:
    prefix = "base_model.model."
    return [
        name.removeprefix(prefix) for name, parameter in adapter.named_parameters() if parameter.requires_grad
    ]


def test_lora_sits_on_every_projection_of_the_body_alone(family: ReadFamily) -> None:
    student = family.model()
    kind, layers = family_of(student.config), student.config.get_text_config().num_hidden_layers
    names = trained(lora_on(student))
    assert len(names) == layers * len(PROJECTIONS) * 2  # A and B
    assert {segment_of(name, kind) for name in names} == {"body"}
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_targets_are_an_option(family: ReadFamily) -> None:
    student = family.model()
    layers = student.config.get_text_config().num_hidden_layers
    names = trained(lora_on(student, targets=["q_proj", "v_proj"]))
    assert len(names) == layers * 2 * 2 and all("q_proj" in name or "v_proj" in name for name in names)


@pytest.mark.parametrize("target", ["query_key_value", "lm_head", "qkv", "embed_tokens"])
def test_a_target_outside_the_body_is_an_error(family: ReadFamily, target: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^lora\.targets: the student's body has no linear layer '{target}'\. It has down_proj",
    ):
        lora_on(family.model(), targets=["q_proj", target])


def test_merge_keeps_the_logits_and_says_by_how_much(family: ReadFamily, tmp_path: Path) -> None:
    lora_on(family.model()).save_pretrained(tmp_path / "adapter")
    merged, difference = merge_lora(family.model(), tmp_path / "adapter", family.batch(), tolerance=1e-4)
    assert 0 <= difference < 1e-5
    fresh = family.model()
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, fresh.get_parameter(name))}
    layers = fresh.config.get_text_config().num_hidden_layers
    assert len(changed) == layers * len(PROJECTIONS)
    assert {segment_of(name, family_of(fresh.config)) for name in changed} == {"body"}
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_a_merge_that_moves_the_logits_is_refused(family: ReadFamily, tmp_path: Path) -> None:
    lora_on(family.model()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="merging LoRA moves the logits"):
        merge_lora(family.model(), tmp_path / "adapter", family.batch(), tolerance=-1.0)
