"""A checkpoint as its authors published it: config.json with `auto_map`, tokenizer files, safetensors shards.

The modeling files that lie beside them are never imported or run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from genrecal.core.errors import ModelError
from genrecal.core.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# model_type in config.json: what the layout is called
LAYOUTS = {"internvl_chat": "InternVL 2 and 2.5", "NVLM_D": "NVLM-D"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint folder of a known layout, with its weights listed but not loaded."""

    folder: Path
    layout: str
    """A key of LAYOUTS."""
    config: dict[str, Any]
    shards: dict[str, tuple[str, ...]]
    """Weight names by shard file, in the files' order."""

    @property
    def weights(self) -> Iterator[str]:
        return (name for names in self.shards.values() for name in names)


def is_native(folder: Path) -> bool:
    """Whether transformers' own classes read `folder` as it is."""
    model_type = _config(folder).get("model_type")
    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def open_source(folder: Path) -> Source:
    """Read what `folder` holds, without its tensors.

    Raises:
        ModelError: an unknown layout, no safetensors, a missing or damaged shard, or an index that disagrees
            with the shards.
    """
    config = _config(folder)
    layout = config.get("model_type")
    if layout not in LAYOUTS:
        known = ", ".join(f"{kind} ({name})" for kind, name in LAYOUTS.items())
        raise ModelError(
            f"has the model type '{layout}', which is no known layout", where=folder, fix=f"Known are {known}"
        )
    return Source(folder=folder, layout=layout, config=config, shards=_shards(folder))


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError("no such model folder", where=folder)
    if not (folder / "config.json").is_file():
        raise ModelError("has no config.json", where=folder, fix="Name the folder of a downloaded checkpoint")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError("its config.json holds no object", where=folder)
    return config


def _shards(folder: Path) -> dict[str, tuple[str, ...]]:
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            pickles = " (only pickled ones, which are not read)" if list(folder.glob("*.bin")) else ""
            raise ModelError(
                f"has no safetensors weights{pickles}",
                where=folder,
                fix=f"Download {INDEX} and the shards that it names",
            )
        return {SINGLE: _names(folder / SINGLE)}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError("names no weights", where=folder / INDEX, fix="Download it again")
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}",
            where=folder,
            fix="Download them",
        )
    shards = {file: _names(folder / file) for file in files}
    found = {name: file for file, names in shards.items() for name in names}
    if found != weight_map:
        wrong = sorted(
            name for name in found.keys() | weight_map.keys() if found.get(name) != weight_map.get(name)
        )
        raise ModelError(
            f"disagrees with the shards about {len(wrong)} weights, for instance '{wrong[0]}'",
            where=folder / INDEX,
            fix="Download the checkpoint again",
        )
    return shards


def _names(path: Path) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="pt") as shard:
            return tuple(shard.keys())
    except SafetensorError as error:
        raise ModelError(f"is damaged ({error})", where=path, fix="Download it again") from None
