"""Weights are read from safetensors alone."""

from __future__ import annotations

from pathlib import Path

from genrecal.core.errors import ModelError


def require_safetensors(folder: Path) -> None:
    """Raise a ModelError if a folder's weights are pickles alone; reading one may run its author's code."""
    pickles = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"holds its weights as pickles ({pickles[0]}), which are not opened",
            where=folder,
            fix="Where you trust them: load them with transformers and save them with save_pretrained, "
            "which writes safetensors",
        )
