"""The limits of the endpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a request may take."""

    queue: int = 16
    """Requests that wait beside the one that is answered; more get status 429."""
    max_new_tokens: int = 1024
    """The longest answer that a request may ask for."""
    max_body_bytes: int = 20_000_000
    max_pixels: int = 16_000_000
    """Of one image."""
    max_images: int = 16
    """In one conversation."""
    timeout_s: float = 120.0
    """From the request to the answer's end, waiting included."""
