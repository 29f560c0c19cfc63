"""A model as its config says, without weights: for tracing, or with weights that come from disk as it runs.

Tracing needs a model's shapes and not its weights. Here each weight is one number of its own, spread over the
weight's shape without being copied; in the traced graph it is an Expand node, which the stitching replaces by
the weight from disk. So a model of any size is traced in the memory of its largest weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from genrecal.core.errors import ModelError
from genrecal.export import attention, vision_attention
from genrecal.export.weights import CheckpointWeights

NAMED = 5  # weights that an error names
# The parametrization's own parameter, by which a trace names a stand-in.
STAND_IN = "parametrizations.{}.original"


class Spread(nn.Module):
    """One number as a whole weight."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, number_1: Tensor) -> Tensor:
        return number_1.expand(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """What is traced, and where the weights of the traced graph come from."""

    model: Any
    """In evaluation mode, with the exporter's attention functions; its numbers mean nothing."""
    weights: CheckpointWeights
    sources: dict[int, str]
    """id of a stand-in -> the name of its weight in `weights`."""

    def names(self, module: nn.Module) -> dict[str, str]:
        """Name of each stand-in below `module`, as a trace of it has them -> the name of its weight."""
        found = module.named_parameters(remove_duplicate=False)
        return {name: self.sources[id(parameter)] for name, parameter in found}


def load_skeleton(folder: Path, dtype: torch.dtype, *, vision_form: str = vision_attention.FUSED) -> Skeleton:
    """The model of a folder as it is traced.

    Args:
        folder: a plain Hugging Face folder.
        dtype: what the graph computes in.
        vision_form: of the vision encoder's attention, `vision_attention.FUSED` or `PARTS`.

    Raises:
        ModelError: no model of this config can be made, or the folder lacks weights or holds other shapes.
    """
    model = _empty_model(folder, dtype)
    config = model.config
    config.get_text_config()._attn_implementation = attention.NAME
    config.vision_config._attn_implementation = vision_form
    weights = CheckpointWeights(folder, model._checkpoint_conversion_mapping)
    sources = _resolve(model, weights)
    return Skeleton(model=model, weights=weights, sources=_stand_in(model, sources, dtype))


def load_streamed(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder, which reads each weight from disk when it needs it and lets go of it after.

    It computes as any model does, in the memory of one layer's weights, and slowly.

    Raises:
        ModelError: as in `load_skeleton`.
    """
    model = _empty_model(folder, dtype)
    weights = CheckpointWeights(folder, model._checkpoint_conversion_mapping)
    found = _Streamed(weights, _resolve(model, weights), dtype)
    attach_align_device_hook(model, execution_device="cpu", offload=True, weights_map=found)
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and not part._parameters:
            # transformers asks a model's first parameter where the model is; a module's own come first.
            part.register_parameter("anchor", nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False))
    return model


class _Streamed(Mapping[str, Tensor]):
    """Weights by the model's names, read when asked for."""

    def __init__(self, weights: CheckpointWeights, sources: dict[str, str], dtype: torch.dtype) -> None:
        self._weights, self._sources, self._dtype = weights, sources, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._weights.read(self._sources[name]).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def _empty_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model in evaluation mode; its parameters have shapes alone, its buffers are real."""
    try:
        config = AutoConfig.from_pretrained(folder)
        for part in (config, config.get_text_config(), config.vision_config):
            part.dtype = dtype
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    except Exception as error:  # whatever a damaged or foreign config makes transformers raise
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"its config.json makes no model ({line})", where=folder) from error
    model.tie_weights()  # what is tied was made anew while it was emptied
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(folder)
    return model.eval()


def _resolve(model: Any, weights: CheckpointWeights) -> dict[str, str]:
    """Every parameter's name -> the weight on disk that is its own, or the one that it is tied to."""
    aliases: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    sources: dict[str, str] = {}
    missing, other = [], []
    for key, names in aliases.items():
        source = next((name for name in names if name in weights), None)
        if source is None:
            missing.append(names[0])
        elif weights.shape(source) != shapes[key]:
            other.append(
                f"{source} is {list(weights.shape(source))}, config.json makes it {list(shapes[key])}"
            )
        else:
            sources |= dict.fromkeys(names, source)
    for problem, found in (("lacks weights", missing), ("holds weights of other shapes", other)):
        if found:
            more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
            raise ModelError(
                f"{problem}: {', '.join(sorted(found)[:NAMED])}{more}",
                where=weights.folder,
                fix="Is the download complete, and is config.json this checkpoint's?",
            )
    return sources


def _stand_in(model: Any, sources: dict[str, str], dtype: torch.dtype) -> dict[int, str]:
    """Put stand-ins in the place of all parameters; returns the weight of each."""
    found: dict[int, str] = {}
    for prefix, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            # A number of its own for each: the exporter merges constants that are equal.
            number_1 = torch.tensor([2.0**-24 * (len(found) + 1)], dtype=dtype)
            module._parameters[name] = nn.Parameter(number_1, requires_grad=False)
            parametrize.register_parametrization(module, name, Spread(parameter.shape), unsafe=True)
            stand_in = module.get_parameter(STAND_IN.format(name))
            found[id(stand_in)] = sources[f"{prefix}.{name}" if prefix else name]
    return found
