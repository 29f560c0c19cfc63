"""What all subjects share: generation settings, seeds and the fingerprint of what decides their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.types import Query, SubjectSpec
from genrecal.core.errors import ModelError
from genrecal.core.files import sha256_bytes

# For models whose settings name no limit: transformers would stop after twenty tokens.
MAX_NEW_TOKENS = 512


def folder_of(spec: SubjectSpec) -> Path:
    """The folder of a checkpoint or a build.

    Raises:
        ModelError: the subject is none.
    """
    if spec.path is None:
        raise ModelError("is no folder", where=spec.name)
    return spec.path


def fingerprint_of(spec: SubjectSpec, content: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a subject's answers."""
    settings = [spec.device, spec.greedy, spec.seed, dict(generation)]
    return sha256_bytes(json.dumps([content, settings], sort_keys=True).encode())


def overrides_of(spec: SubjectSpec, own_limit: int | None) -> dict[str, Any]:
    """What differs from the model's own generation settings."""
    overrides: dict[str, Any] = {}
    if spec.max_new_tokens is not None or own_limit is None:
        overrides["max_new_tokens"] = spec.max_new_tokens or MAX_NEW_TOKENS
    if spec.greedy:
        overrides["do_sample"] = False
    return overrides


def seed_of(seed: int, queries: Sequence[Query]) -> int:
    """A seed of these queries' own, so that a resumed run samples what an uninterrupted one does."""
    text = json.dumps([seed, *(query.id for query in queries)])
    return int(sha256_bytes(text.encode())[:15], 16)
