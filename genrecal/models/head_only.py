"""A teacher without its body: what speaks for it where its features lie on disk.

It is loaded as the whole model would be, by transformers, with a config of no layers: so the names of the
weights in any checkpoint, tied ones, and ZeRO-3's splitting are the library's affair. The weights of the
layers are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from genrecal.core.errors import ModelError
from genrecal.models.processors import check_model_folder, load_model
from genrecal.models.remote_code import RemoteCode, check_remote_code

# What configs call the number of layers of a text model or a vision encoder.
LAYER_COUNTS = ("num_hidden_layers", "depth")


class HeadOnly(nn.Module):
    """The head of a VLM, and its word embeddings where they are read."""

    def __init__(self, model: Any, *, embeddings: bool) -> None:
        super().__init__()
        self.config = model.config
        self.lm_head = model.get_output_embeddings()
        self.embed_tokens = model.get_input_embeddings() if embeddings else None

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        assert self.embed_tokens is not None
        return self.embed_tokens


def load_head(
    folder: Path, *, embeddings: bool, dtype: torch.dtype, code: RemoteCode | None = None
) -> HeadOnly:
    """The head of the model in `folder`, in evaluation mode.

    Args:
        folder: a VLM's folder.
        embeddings: whether the word embeddings are read too.
        dtype: of the weights.
        code: whether the folder's own code may run; None: it may not.

    Raises:
        ModelError: the folder holds no such model.
    """
    config = load_model_config(folder, code=code)
    for part in (config, config.get_text_config(), getattr(config, "vision_config", None)):
        for name in LAYER_COUNTS:
            if hasattr(part, name):
                setattr(part, name, 0)
    with _quiet():  # transformers lists every weight of the layers as one that was not used
        model = load_model(folder, code=code, config=config, dtype=dtype)
    return HeadOnly(model, embeddings=embeddings).eval()


def load_model_config(folder: Path, *, code: RemoteCode | None = None) -> Any:
    """The transformers config of a model folder; `code` as in `load_head`.

    Raises:
        ModelError: it has none that transformers reads.
    """
    check_model_folder(folder)
    allowed = check_remote_code(folder, code or RemoteCode()).options
    try:
        return AutoConfig.from_pretrained(folder, **allowed)
    except Exception as error:  # whatever a damaged or foreign file makes the library raise
        message = " ".join(str(error).split())[:300]
        raise ModelError(f"its config cannot be loaded ({message})", where=folder) from error


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
