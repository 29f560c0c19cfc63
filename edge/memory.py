"""What a query takes of a device's memory, told before it is taken.

    limit = weights + kept features and keys and values + [ this query's keys and values + its image ]

On an 8 GB device a query that is too large ends the process, and on a Jetson, where the GPU shares the
memory, often the desktop with it. So the parts are computed from the build's own sizes, and what does not fit
is refused in one line. The figures for the encoder are upper bounds, not measurements.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.preprocess import Picture
from genrecal.core.errors import BuildError, ConfigError, DataError, DeviceError

# Of what is free, how much is planned with; the rest is for Python, arenas and other programs.
SHARE = 0.85
# Of what the weights leave, at most so much is kept for later questions.
KEPT, KEPT_MOST_BYTES = 0.4, 2 * 2**30
_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """What the encoder's memory follows from."""

    hidden: int
    intermediate: int
    patch: int
    tiles: int
    """Tiles that run at a time."""

    def workspace_bytes(self, picture: Picture) -> int:
        """At most so much is alive in one block: the activations of every patch that runs at a time.

        The graphs' attention (MultiHeadAttention) never holds the scores of a whole image: its queries, keys
        and values in their several forms come to 16 times the width, or the MLP's inner layer to more.
        """
        pixels = picture.inputs["pixel_values"]
        if picture.grid is not None:
            patches = len(pixels)
        else:
            patches = min(len(pixels), self.tiles) * ((pixels.shape[-1] // self.patch) ** 2 + 1)
        widest = max(18 * self.hidden, 4 * self.hidden + 2 * self.intermediate)
        return patches * widest * _FLOAT + 2 * pixels.nbytes


def encoder_shape(config: Mapping[str, Any], *, tiles: int) -> EncoderShape:
    """The shape of a build's vision encoder from its config.json; families name the same things differently.

    Raises:
        BuildError: a number is missing.
    """
    vision = config.get("vision_config") or {}

    def number(*names: str) -> int:
        for name in names:
            value = vision.get(name)
            if value is not None:
                return int(value[0] if isinstance(value, list) else value)
        raise BuildError(f"its vision_config lacks '{names[0]}'", where="config.json")

    hidden = number("embed_dim", "hidden_size")
    ratio = vision.get("mlp_ratio")
    return EncoderShape(
        hidden=hidden,
        intermediate=int(hidden * ratio) if ratio else number("intermediate_size"),
        patch=number("patch_size"),
        tiles=tiles,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What queries may take."""

    free_bytes: int
    """Beside the weights and what is kept."""
    kept_bytes: int
    """For features, and keys and values, of earlier questions; half of it each."""
    token_bytes: int
    encoder: EncoderShape
    max_context: int
    """Tokens of prompt and answer together that the memory and the model's positions allow."""

    def check_context(self, tokens: int) -> None:
        """Raise a DataError if prompt and answer of so many tokens are too long."""
        if tokens > self.max_context:
            raise DataError(
                f"prompt and answer take {tokens:,} tokens, device and model allow {self.max_context:,}",
                fix="Ask with fewer or smaller images, less text, or a smaller max_new_tokens",
            )

    def check_batch(self, rows: int, places: int) -> None:
        """Raise a DataError if so many answers at a time take too much memory."""
        need = rows * places * self.token_bytes
        if need > self.free_bytes:
            raise DataError(
                f"{rows} answers of up to {places:,} tokens take {need / 1e9:.1f} GB, "
                f"{self.free_bytes / 1e9:.1f} GB are left",
                fix="Ask fewer questions at a time",
            )

    def check_picture(self, picture: Picture) -> None:
        """Raise a DataError if an image takes more memory in the encoder than there is."""
        need = self.encoder.workspace_bytes(picture)
        if need > self.free_bytes:
            raise DataError(
                f"an image of {picture.tokens:,} tokens takes about {need / 1e9:.1f} GB in the encoder, "
                f"{self.free_bytes / 1e9:.1f} GB are left",
                fix="Make the image smaller, or lower max_pixels or max_patches in the student's "
                "preprocessor_config.json and export again",
            )


def plan_memory(
    *,
    limit_bytes: int,
    weights_bytes: int,
    token_bytes: int,
    positions: int,
    encoder: EncoderShape,
) -> Budget:
    """Divide a device's memory.

    Args:
        limit_bytes: what the process may take in all.
        weights_bytes: of the graphs.
        token_bytes: keys and values of one token.
        positions: the model's own limit of tokens.
        encoder: of the vision encoder.

    Raises:
        DeviceError: the weights alone do not fit.
    """
    left = limit_bytes - weights_bytes
    if left <= 0:
        raise DeviceError(
            f"the build's weights take {weights_bytes / 1e9:.1f} GB, "
            f"this device has {limit_bytes / 1e9:.1f} GB for it",
            fix="Export it with --int8 or --int4, or end other programs",
        )
    kept = min(int(left * KEPT), KEPT_MOST_BYTES)
    free = left - kept
    return Budget(
        free_bytes=free,
        kept_bytes=kept,
        token_bytes=token_bytes,
        encoder=encoder,
        max_context=max(1, min(positions, free // max(token_bytes, 1))),
    )


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may still take: what the system has free, or its control group allows.

    Raises:
        ConfigError: the system does not tell.
    """
    text = _read(root / "proc/meminfo") or ""
    found = [line.split()[1] for line in text.splitlines() if line.startswith("MemAvailable:")]
    if not found:
        raise ConfigError("this system does not tell how much memory is free", fix="Give a memory limit")
    free = int(found[0]) * 1024
    group = root / "sys/fs/cgroup"
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if limit and used and limit != "max":
        # Pages of files that nobody has read for long are given up when memory is asked for.
        stat = (_read(group / "memory.stat") or "").splitlines()
        given_up = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
        free = min(free, int(limit) - int(used) + given_up)
    return int(free * SHARE)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def peak_memory_bytes() -> int:
    """The most memory that this process has held resident.

    Linux keeps it for each address space in VmHWM; getrusage would also count the parent that started us.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
