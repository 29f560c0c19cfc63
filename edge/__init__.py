"""The torch-free runtime: opens a build and answers questions about images.

import edge

model = edge.EdgeModel.open(Path("build"))
model.answer((image, "How many circles?")).text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.conversation import Conversation
    from edge.model import EdgeModel

__all__ = ["Conversation", "EdgeModel"]
# A name -> its module: onnxruntime and tokenizers are loaded when one is first asked for.
_LAZY = {"Conversation": "edge.conversation", "EdgeModel": "edge.model"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edge' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
