"""Which questions share an image: their errors depend on each other, so the bootstrap draws them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from genrecal.core.files import sha256_bytes


def image_clusters(questions: Iterable[tuple[str, Sequence[Path | bytes]]]) -> dict[str, str]:
    """The cluster of each question that shares an image with another; who is alone is not named.

    Questions are joined over chains: one that shares an image with each of two joins these.

    Args:
        questions: id, and the images as paths (one path is one image) or encoded bytes.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first_with: dict[str, str] = {}
    for name, images in questions:
        parent[name] = name
        for image in images:
            key = str(image) if isinstance(image, Path) else sha256_bytes(image)
            # The earlier question stays the root, so that clusters are named by their first one.
            parent[root(name)] = root(first_with.setdefault(key, name))
    members: dict[str, list[str]] = {}
    for name in parent:
        members.setdefault(root(name), []).append(name)
    return {name: first for first, names in members.items() if len(names) > 1 for name in names}
