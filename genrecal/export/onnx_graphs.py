"""A checkpoint as ONNX graphs, through Optimum's exporter; what differs per family is one dict entry."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.onnx.base import OnnxConfig

from genrecal.core.errors import BuildError, ModelError
from genrecal.export import qwen2_vl

# The newest onnxruntime for Python 3.10 on aarch64 (1.23) runs it too.
OPSET = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One ONNX graph: the module that is traced, made from the whole model, and its Optimum config."""

    module: Callable[[Any], Any]
    config: type[OnnxConfig]


# model_type -> the graphs by the file names that the ONNX community uses.
FAMILIES: dict[str, dict[str, Graph]] = {
    "qwen2_vl": {
        "vision_encoder": Graph(module=qwen2_vl.VisionEncoder, config=qwen2_vl.VisionEncoderConfig),
        "embed_tokens": Graph(module=qwen2_vl.EmbedTokens, config=qwen2_vl.EmbedTokensConfig),
        "decoder_model_merged": Graph(module=qwen2_vl.Decoder, config=qwen2_vl.DecoderConfig),
    },
}


def graphs_of(model_type: str | None, *, where: Path | str) -> dict[str, Graph]:
    """The graphs of a family.

    Raises:
        ModelError: no such family; `where` is what the error names.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"model_type '{model_type}' cannot be exported",
            where=where,
            fix=f"Supported: {', '.join(FAMILIES)}",
        )
    return FAMILIES[model_type]


def export_graphs(model: Any, folder: Path) -> list[Path]:
    """Write every graph of `model` as `folder/<name>.onnx` (above 2 GB, `<name>.onnx_data` beside it).

    Args:
        model: a float32 transformers model of a family in `FAMILIES`, on the CPU, in evaluation mode.
        folder: where the graphs go; made if it is not there.

    Returns:
        The `.onnx` files in the order of the family's entry.

    Raises:
        ModelError: the model is of another family or not float32.
        BuildError: the exporter failed; its last line is quoted.
    """
    where = model.config._name_or_path or type(model).__name__
    graphs = graphs_of(model.config.model_type, where=where)
    if str(model.dtype) != "torch.float32":
        raise ModelError(f"is loaded as {model.dtype}, the exporter takes float32", where=where)
    folder.mkdir(parents=True, exist_ok=True)
    # Optimum also writes configs and a tokenizer of its own making; only the graphs leave this folder.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as temporary:
        with _eager_attention(model), _quiet(where):
            onnx_export_from_model(
                model,
                temporary,
                task="image-text-to-text",
                opset=OPSET,
                custom_onnx_configs={name: graph.config(model.config) for name, graph in graphs.items()},
                fn_get_submodels=lambda whole: {name: graph.module(whole) for name, graph in graphs.items()},
                no_post_process=True,
                do_validation=False,  # parity.py compares whole answers, not Optimum's one random input
            )
        for path in sorted(Path(temporary).glob("*.onnx*")):
            path.replace(folder / path.name)
    return [folder / f"{name}.onnx" for name in graphs]


@contextlib.contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """The eager attention traces into plain products; the fused one freezes its choice of a kernel."""
    before, use_cache = model.config._attn_implementation, model.config.get_text_config().use_cache
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        # Optimum switches the cache off in the configs while it traces graphs without one.
        model.config.get_text_config().use_cache = use_cache


@contextlib.contextmanager
def _quiet(where: str | Path) -> Iterator[None]:
    """Keep what the exporters print away from the terminal, unless they fail."""
    said, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        last = " ".join(f"{error}".split())[-300:] or type(error).__name__
        raise BuildError(f"the ONNX export failed ({last})", where=where) from error
    finally:
        logging.disable(before)
