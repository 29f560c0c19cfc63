"""The tiny checkpoints in their authors' layout, and what the authors' code made of them (data/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"
NAMES = ("internvl2_5_internlm2", "internvl2_5_qwen2", "internvl2_llama3", "nvlm_d")
CASES = ("one", "two", "turns", "text")
MARK = "<image>\n"


def picture(width: int, height: int) -> Image.Image:
    """The noise image of this size that the references were made with."""
    noise = np.random.default_rng([7, width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One checkpoint's reference."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def source(self) -> Path:
        return DATA / self.name / "source"

    def prompt(self, case: str) -> str:
        """The prompt of the authors' `chat`, image tokens included."""
        return self.facts["cases"][case]["prompt"]

    def messages(self, case: str) -> list[dict[str, Any]]:
        """The case's conversation in the form of chat templates, its images within."""
        images = (picture(*size) for size in self.facts["cases"][case]["images"])
        messages = []
        for place, text in enumerate(self.facts["cases"][case]["turns"]):
            parts: list[dict[str, Any]] = []
            for position, piece in enumerate(text.split(MARK)):
                if position:
                    parts.append({"type": "image", "image": next(images)})
                if piece:
                    parts.append({"type": "text", "text": piece})
            messages.append({"role": "assistant" if place % 2 else "user", "content": parts})
        return messages

    def tensor(self, case: str, what: str) -> torch.Tensor:
        return self.tensors[f"{case}.{what}"]


def read_reference(name: str) -> Reference:
    return Reference(
        name=name,
        facts=json.loads((DATA / name / "reference.json").read_text(encoding="utf-8")),
        tensors=load_file(DATA / name / "reference.safetensors"),
    )
