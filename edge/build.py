"""A build folder: what lies in it, under which names, and how it is opened. The exporter writes by it.

    manifest.json      kind "build": family, precision, target, graphs (name -> file), quantization,
                       provenance, SHA-256 of all files
    *.json, *.jinja    the model's config, generation and preprocessing settings, tokenizer, chat template
    onnx/              vision_encoder{S}.onnx  embed_tokens{S}.onnx  decoder_model_merged{S}.onnx
    parity.json        how far the graphs are from the checkpoint that they come from

S is the suffix of a graph's own precision, as the ONNX community names it (none for fp32, _fp16, _int8, _q4
and more), and may differ from graph to graph; the manifest says which files they are. Large weights lie
beside their graph as `.onnx_data`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.onnx_wire import check_external_data
from edge.sealed import Sealed, check_files, check_names
from edge.trust import Trust
from genrecal.core.errors import BuildError, ConfigError, GenrecalError
from genrecal.core.files import read_regular
from genrecal.core.manifest import MAX_BYTES, parse_manifest
from genrecal.core.manifest import NAME as MANIFEST
from genrecal.core.strict_json import parse_json

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
# What a build as a whole can be called, and the devices that its operators are chosen for.
PRECISIONS = ("fp32", "fp16", "int8", "int4")
TARGETS = ("cpu", "jetson", "jetson-tensorrt")

# The files that answering a question reads; an unsigned one among them must not be opened.
_NEEDED = (CONFIG, GENERATION_CONFIG, PREPROCESSOR_CONFIG, TOKENIZER, CHAT_TEMPLATE)
# Parsed from the very bytes that were compared; tokenizers and ONNX Runtime open theirs by name.
_PARSED = (CONFIG, GENERATION_CONFIG, PREPROCESSOR_CONFIG, SPECIAL_TOKENS_MAP, CHAT_TEMPLATE)
_FAMILY = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """An opened build: its facts, its settings and where its graphs lie."""

    folder: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    preprocessor_config: dict[str, Any]
    special_tokens: dict[str, Any]
    """special_tokens_map.json; {} where there is none."""
    chat_template: str
    vision_encoder: Path
    embed_tokens: Path
    decoder: Path
    sealed: Sealed

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


def open_build(
    folder: Path,
    *,
    verify: bool = True,
    manifest_sha256: str | None = None,
    trusted_keys: Sequence[Path] = (),
) -> Build:
    """Open a build folder; nothing of it is loaded that its manifest does not vouch for (docs/security.md).

    Args:
        folder: what `genrecal export` wrote.
        verify: compare every file with its SHA-256 first; it reads the whole build once. Without it, for a
            folder that this process has just written, other files may lie there.
        manifest_sha256: the only manifest that is opened, by its SHA-256.
        trusted_keys: public keys (PEM); only a manifest that one of them has signed is opened.

    Raises:
        BuildError: no such folder, a folder of another kind, a file missing, altered, not named, or no
            regular file in the folder; another manifest than the pinned one, or one that nobody signed.
        ConfigError: a digest or a key that is none.
    """
    if not folder.is_dir():
        raise BuildError("no such build folder", where=folder, fix="Name the folder of a finished build")
    trust = Trust(manifest_sha256=manifest_sha256, keys=tuple(trusted_keys))
    if trust and not verify:
        raise ConfigError("a pin or a key says nothing about files that are not compared", where="verify")
    try:
        # Once: a link that is switched meanwhile must not give files of two builds.
        return _open(folder.resolve(strict=True), folder, trust, verify=verify)
    except (BuildError, ConfigError) as error:
        raise error
    except GenrecalError as error:
        raise BuildError(error.what, where=error.where, fix=error.fix) from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        # A manifest that is valid JSON but not one that we write, or a template that is no text.
        raise BuildError(
            f"its {MANIFEST} or {CHAT_TEMPLATE} is damaged ({type(error).__name__}: {ascii(error)[:160]})",
            where=folder,
            fix="Copy the whole folder again",
        ) from None
    except OSError as error:
        raise BuildError(f"cannot be read ({error.strerror})", where=folder) from None


def _open(folder: Path, shown: Path, trust: Trust, *, verify: bool) -> Build:
    try:
        data = read_regular(folder / MANIFEST, max_bytes=MAX_BYTES)
    except (FileNotFoundError, IsADirectoryError):
        raise BuildError(
            f"is no build folder: it has no {MANIFEST}",
            where=shown,
            fix="Name the folder of a finished build",
        ) from None
    trust.check(data, shown)
    manifest = parse_manifest(data, shown, kind=KIND)
    check_names(manifest, shown)
    graphs = [str(manifest["graphs"][graph]) for graph in GRAPHS]
    for name in (*_NEEDED, *graphs):
        if name not in manifest["files"]:
            raise BuildError(
                f"its {MANIFEST} does not list {ascii(name)[:120]}", where=shown, fix="Export it again"
            )
    for key, known in (("precision", PRECISIONS), ("target", TARGETS)):
        if manifest[key] not in known:
            raise BuildError(
                f"its {MANIFEST} names {key} {ascii(manifest[key])[:80]}",
                where=shown,
                fix=f"This genrecal reads {', '.join(known)}",
            )
    if not isinstance(manifest["family"], str) or not _FAMILY.fullmatch(manifest["family"]):
        raise BuildError(f"its {MANIFEST} names no family", where=shown, fix="Export it again")
    sealed, texts = check_files(manifest, folder, texts=_PARSED, hashed=verify)
    sizes = {name: identity.bytes for name, identity in sealed.identities.items()}
    for name in graphs:
        check_external_data(folder, name, sizes)
    settings = {name: _mapping(texts, folder, name) for name in _PARSED if name != CHAT_TEMPLATE}
    vision_encoder, embed_tokens, decoder = (folder / name for name in graphs)
    return Build(
        folder=folder,
        manifest=manifest,
        config=settings[CONFIG],
        generation_config=settings[GENERATION_CONFIG],
        preprocessor_config=settings[PREPROCESSOR_CONFIG],
        special_tokens=settings[SPECIAL_TOKENS_MAP],
        chat_template=texts[CHAT_TEMPLATE].decode("utf-8"),
        vision_encoder=vision_encoder,
        embed_tokens=embed_tokens,
        decoder=decoder,
        sealed=sealed,
    )


def _mapping(texts: Mapping[str, bytes], folder: Path, name: str) -> dict[str, Any]:
    """A settings file, from the bytes that were compared; {} where the build has none."""
    if name not in texts:
        return {}
    content = parse_json(texts[name], where=folder / name)
    if not isinstance(content, dict):
        raise BuildError("holds no mapping of keys to values", where=folder / name)
    return content
