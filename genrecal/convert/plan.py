"""A conversion on paper: every stored weight has a place in the native model, and every place its weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import InternVLConfig, InternVLForConditionalGeneration

from genrecal.convert.source import Source
from genrecal.convert.weights import Shape, convert_weight, dropped_because
from genrecal.core.errors import ModelError
from genrecal.models.nvlm import NvlmConfig, NvlmForConditionalGeneration

# safetensors' names of the types that unquantized checkpoints are stored in.
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """What a shard's header says of one weight."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be written, known from names and shapes alone."""

    shape: Shape
    weights: int
    total_bytes: int
    dropped: dict[str, str]
    """Weights that are left out, with the reason."""


def stored_weights(source: Source) -> Iterator[StoredWeight]:
    """The weights of all shards, from their headers."""
    for file, names in source.shards.items():
        with safe_open(source.folder / file, framework="pt") as shard:
            for name in names:
                header = shard.get_slice(name)
                yield StoredWeight(
                    name=name,
                    shape=tuple(header.get_shape()),
                    dtype=header.get_dtype(),
                    file=source.folder / file,
                )


def make_plan(stored: Iterable[StoredWeight], *, source: Source, config: InternVLConfig) -> Plan:
    """Put every weight in its place on paper.

    Raises:
        ModelError: a weight has no place, a place has no weight, two weights have the same, their shapes
            differ, or a weight is quantized.
    """
    internlm2 = source.config["llm_config"]["architectures"][0] == "InternLM2ForCausalLM"
    shape = Shape.of(config, internlm2=internlm2)
    expected = native_shapes(config)
    open_places = set(expected)
    dropped: dict[str, str] = {}
    total_bytes = 0
    for weight in stored:
        if reason := dropped_because(weight.name):
            dropped[weight.name] = reason
            continue
        if weight.dtype not in DTYPES:
            raise ModelError(
                f"'{weight.name}' is stored as {weight.dtype}",
                where=weight.file,
                fix="Use the checkpoint that is not quantized",
            )
        tensor = torch.empty(weight.shape, dtype=DTYPES[weight.dtype], device="meta")
        made = convert_weight(weight.name, tensor, shape)
        if not made:
            raise ModelError(f"the weight '{weight.name}' is not known", where=weight.file)
        for native, part in made.items():
            if native not in expected:
                raise ModelError(f"the model has no place for '{weight.name}'", where=weight.file)
            if native not in open_places:
                raise ModelError(f"a second weight for '{native}', '{weight.name}'", where=weight.file)
            if part.shape != expected[native]:
                raise ModelError(
                    f"'{weight.name}' gives {list(part.shape)}, the config says {list(expected[native])}",
                    where=weight.file,
                )
            open_places.remove(native)
            total_bytes += part.nbytes
    if open_places:
        raise ModelError(
            f"{len(open_places)} weights are missing, for instance what becomes '{min(open_places)}'",
            where=source.folder,
            fix="Download the checkpoint again",
        )
    return Plan(shape=shape, weights=len(expected), total_bytes=total_bytes, dropped=dropped)


def native_shapes(config: InternVLConfig) -> dict[str, torch.Size]:
    """Shapes of the native model's weights by the names that `save_pretrained` gives them."""
    nvlm = isinstance(config, NvlmConfig)
    kind: Any = NvlmForConditionalGeneration if nvlm else InternVLForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)
    tied = {"lm_head.weight"} if config.text_config.tie_word_embeddings else set()
    return {
        _saved_name(name): parameter.shape
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in tied
    }


def _saved_name(name: str) -> str:
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
