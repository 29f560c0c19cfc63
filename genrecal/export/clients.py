"""Builds for other clients, where they want other names than ours.

Layout, file names and operators of a build are those of the ONNX community as they are. What is left:

    transformers.js   Qwen2-VL's grid is an input named `grid_thw`; the chat template stands in
                      tokenizer_config.json, the language model's sizes at the top of config.json, and that
                      file says which type each graph has, which weights lie beside their graph and which
                      type keys and values have

Such a build is made and compared as any other; only then are its names changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from edge import build as layout
from genrecal.core.errors import BuildError
from genrecal.core.files import read_json, write_json

OURS = "genrecal"
# Families whose graphs take what transformers.js 4 gives them; others it does not know, or in other shapes.
TRANSFORMERS_JS_FAMILIES = ("qwen2_vl", "qwen2_5_vl")


def require_client(client: str, family: str) -> None:
    """Raise a BuildError unless a build of this family can be made for the client."""
    if client not in CLIENTS:
        raise BuildError(f"no client is called '{client}'", fix=f"Known: {', '.join(CLIENTS)}")
    if client != OURS and family not in TRANSFORMERS_JS_FAMILIES:
        raise BuildError(
            f"{client} does not run our graphs of the family '{family}'",
            fix=f"Those of {', '.join(TRANSFORMERS_JS_FAMILIES)} it does",
        )


def adapt(folder: Path, graphs: dict[str, str], *, client: str, family: str) -> None:
    """Change the build in `folder`, which is not signed yet, to what the client takes.

    Args:
        folder: the build.
        graphs: graph -> its file, as the manifest will name it.
        client: one of CLIENTS.
        family: of the build.
    """
    CLIENTS[client](folder, graphs, family)


def _as_it_is(folder: Path, graphs: dict[str, str], family: str) -> None:
    """Our own runtime."""


def _transformers_js(folder: Path, graphs: dict[str, str], family: str) -> None:
    if family == "qwen2_vl":
        _rename_input(folder / graphs[layout.VISION_ENCODER], "image_grid_thw", "grid_thw")
    tokenizer: dict[str, Any] = read_json(folder / layout.TOKENIZER_CONFIG)
    tokenizer["chat_template"] = (folder / layout.CHAT_TEMPLATE).read_text(encoding="utf-8")
    write_json(folder / layout.TOKENIZER_CONFIG, tokenizer)
    config: dict[str, Any] = read_json(folder / layout.CONFIG)
    outside = {Path(name).name: 1 for name in graphs.values() if (folder / f"{name}_data").is_file()}
    settings = {
        "dtype": {graph: _dtype(graph, name) for graph, name in graphs.items()},
        "use_external_data_format": outside,
        "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"},
    }
    # The fields of the whole model go first where both have one.
    write_json(
        folder / layout.CONFIG, {**config["text_config"], **config, "transformers.js_config": settings}
    )


def _dtype(graph: str, name: str) -> str:
    """What the client calls the type of a file: it finds the file by it, and a build has several."""
    return Path(name).stem.removeprefix(graph).removeprefix("_") or "fp32"


def _rename_input(path: Path, old: str, new: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.input:
        if entry.name == old:
            entry.name = new
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
    onnx.save_model(model, path)


CLIENTS: dict[str, Callable[[Path, dict[str, str], str], None]] = {
    OURS: _as_it_is,
    "transformers.js": _transformers_js,
}
