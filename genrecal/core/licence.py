"""The licence of what is made of several models: the strictest of theirs, as far as that can be ordered.

    permissive -> attribution -> copyleft, use restrictions -> own terms -> no commercial use -> unknown

Identifiers are those of model hubs. The order says which of several terms binds more; it reads no licence,
and a card that names one also says to look at the parents' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

# From the freest to the strictest; within a line, by what they ask for.
ORDER = (
    ("cc0-1.0", "unlicense", "mit", "bsd-2-clause", "bsd-3-clause", "apache-2.0"),
    ("cc-by-4.0",),
    ("cc-by-sa-4.0", "openrail", "bigscience-openrail-m", "gpl-3.0", "agpl-3.0"),
    ("llama3.2", "llama3.1", "llama3", "llama2", "gemma", "qwen", "other"),
    ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
RANK = {name: place for place, name in enumerate(name for line in ORDER for name in line)}
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What a card says."""

    name: str
    """A hub's identifier, or "unknown"."""
    warning: str
    """One or two sentences for people."""


def licence_of(folder: Path) -> str | None:
    """The licence that a model folder's README.md names at its head; None where it names none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return found.lower() if isinstance(found, str) else None


def strictest(parents: Mapping[str, str | None]) -> Licence:
    """The licence of a child.

    Args:
        parents: what each parent is to the child -> its licence; None where it is not known.
    """
    shown = ", ".join(f"{parent}: {licence or UNKNOWN}" for parent, licence in parents.items())
    advice = "Read the parents' own terms before you share this model, and those of the training data."
    unordered = [licence for licence in parents.values() if licence not in RANK]
    if unordered or not parents:
        reason = f"not every parent's licence is known ({shown})" if parents else "no parent is known"
        return Licence(name=UNKNOWN, warning=f"The licence is not settled here: {reason}. {advice}")
    name = max((licence for licence in parents.values() if licence), key=lambda licence: RANK[licence])
    return Licence(name=name, warning=f"The strictest of its parents' ({shown}). {advice}")
