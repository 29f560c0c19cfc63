"""A build folder: what lies in it, under which names, and how it is opened. The exporter writes by it.

    manifest.json      kind "build": provenance, precision, quantization, family, suffix, SHA-256 of all files
    *.json, *.jinja    the model's config, generation and preprocessing settings, tokenizer, chat template
    onnx/              vision_encoder{S}.onnx  embed_tokens{S}.onnx  decoder_model_merged{S}.onnx
    parity.json        how far the graphs are from the checkpoint that they come from

S is the suffix of the precision, as the ONNX community names it; weights above 2 GB lie beside their
graph as `.onnx_data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrecal.core.errors import BuildError, GenrecalError
from genrecal.core.files import read_json
from genrecal.core.manifest import NAME as MANIFEST
from genrecal.core.manifest import read_manifest, verify_manifest

KIND = "build"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
PARITY = "parity.json"
# What the exporter copies from the student as it is.
SETTINGS_FILES = (
    CONFIG,
    GENERATION_CONFIG,
    PREPROCESSOR_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    CHAT_TEMPLATE,
)

VISION_ENCODER = "vision_encoder"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"
GRAPHS = (VISION_ENCODER, EMBED_TOKENS, DECODER)
# precision -> the suffix of its graphs' file names
SUFFIXES = {"fp32": "", "int8": "_int8"}

# The files that answering a question reads; an unsigned one among them must not be opened.
_NEEDED = (CONFIG, GENERATION_CONFIG, PREPROCESSOR_CONFIG, TOKENIZER, CHAT_TEMPLATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """An opened build: its facts, its settings and where its graphs lie."""

    folder: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    preprocessor_config: dict[str, Any]
    chat_template: str
    vision_encoder: Path
    embed_tokens: Path
    decoder: Path

    @property
    def family(self) -> str:
        return self.manifest["family"]

    @property
    def precision(self) -> str:
        return self.manifest["precision"]

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER


def graph_file(graph: str, suffix: str) -> str:
    """The path of a graph inside its build, with forward slashes: `onnx/embed_tokens_int8.onnx`."""
    return f"onnx/{graph}{suffix}.onnx"


def open_build(folder: Path, *, verify: bool = True) -> Build:
    """Open a build folder.

    Args:
        folder: what `genrecal export` wrote.
        verify: compare every file with its SHA-256 in the manifest first; it reads the whole build once.

    Raises:
        BuildError: no such folder, a folder of another kind, a file missing or altered.
    """
    if not folder.is_dir():
        raise BuildError("no such build folder", where=folder, fix="Name the folder of a finished build")
    try:
        manifest = verify_manifest(folder, kind=KIND) if verify else read_manifest(folder, kind=KIND)
        suffix = manifest["suffix"]
        graphs = [graph_file(graph, suffix) for graph in GRAPHS]
        for name in (*_NEEDED, *graphs):
            if name not in manifest["files"]:
                raise BuildError(
                    f"its {MANIFEST} does not list '{name}'", where=folder, fix="Export it again"
                )
            if not (folder / name).is_file():
                raise BuildError(f"file '{name}' is missing", where=folder, fix="Copy the whole folder again")
        if SUFFIXES.get(manifest["precision"]) != suffix or not isinstance(manifest["family"], str):
            raise BuildError(
                f"its {MANIFEST} names precision '{manifest['precision']}' with suffix '{suffix}'",
                where=folder,
                fix=f"This genrecal reads {', '.join(SUFFIXES)}",
            )
        vision_encoder, embed_tokens, decoder = (folder / name for name in graphs)
        return Build(
            folder=folder,
            manifest=manifest,
            config=_read_mapping(folder / CONFIG),
            generation_config=_read_mapping(folder / GENERATION_CONFIG),
            preprocessor_config=_read_mapping(folder / PREPROCESSOR_CONFIG),
            chat_template=(folder / CHAT_TEMPLATE).read_text(encoding="utf-8"),
            vision_encoder=vision_encoder,
            embed_tokens=embed_tokens,
            decoder=decoder,
        )
    except BuildError:
        raise
    except GenrecalError as error:
        raise BuildError(error.what, where=error.where, fix=error.fix) from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        # A manifest that is valid JSON but not one that we write, or a template that is no text.
        raise BuildError(
            f"its {MANIFEST} or {CHAT_TEMPLATE} is damaged ({type(error).__name__}: {error})",
            where=folder,
            fix="Copy the whole folder again",
        ) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise BuildError("holds no mapping of keys to values", where=path)
    return content
