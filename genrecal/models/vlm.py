"""A VLM as the paper cuts it: embed -> VLM-body -> VLM-head.

    input ids, pixels --(vision encoder, projector, word embedding, VLM-body)--> z_BSD --(VLM-head)--> logits

z is exactly what the head reads: the features after the body's last norm. Hidden states between the body's
layers are the residual stream as the next layer takes it, without a norm.

Shapes: B samples, S positions, Q / A longest question and answer, D hidden size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from genrecal.core.errors import ConfigError
from genrecal.data.batch import Batch
from genrecal.models.families import family_of


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of a forward pass over `batch`, for the whole model and the one below its head."""
    wanted = family_of(model.config).token_inputs
    return {
        "input_ids": batch.input_ids_BS,
        "attention_mask": batch.attention_mask_BS,
        "use_cache": False,
        "return_dict": True,
        **{name: batch.token_inputs[name] for name in wanted},
        **batch.vision,
    }


def body_features(model: Any, batch: Batch) -> torch.Tensor:
    """z of every position, [B, S, D]."""
    return model.model(**model_inputs(model, batch)).last_hidden_state


def layer_features(model: Any, batch: Batch, depths: Sequence[float]) -> list[torch.Tensor]:
    """Hidden states at several depths of the VLM-body in one forward pass, [B, S, D] each.

    Args:
        model: a VLM.
        batch: what it reads.
        depths: fractions of the body's layers; 1 is z, 0 what the first layer takes. `layer_at` rounds them.

    Raises:
        ConfigError: a depth outside 0 to 1.
    """
    layers = text_body(model).layers
    places = [layer_at(depth, len(layers)) for depth in depths]
    taken: dict[int, torch.Tensor] = {}

    def take(place: int) -> Any:
        # What a layer takes rather than what the one before gives: DeepStack adds image features between the
        # two, and under re-entrant checkpointing a layer's own output carries no gradient yet.
        return lambda _, arguments: taken.__setitem__(place, arguments[0])

    # Before DeepSpeed's own hook: under ZeRO-3 it puts a copy in the argument's place, and where activations
    # are recomputed the copy carries no gradient.
    hooks = [
        layers[place].register_forward_pre_hook(take(place), prepend=True)
        for place in set(places)
        if place < len(layers)
    ]
    try:
        taken[len(layers)] = body_features(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [taken[place] for place in places]


def layer_at(depth: float, layers: int) -> int:
    """How many of `layers` layers lie before `depth`, a fraction of them; halves round up."""
    if not 0 <= depth <= 1:
        raise ConfigError(f"{depth} is no depth of a model", fix="Depths go from 0 to 1")
    return int(depth * layers + 0.5)


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing, re-entrant: ZeRO-3 has split weights again by the time of the backward pass.

    A re-entrant segment passes gradients on only where one of its inputs wants one, so the word embeddings
    do, frozen or not. Not by `enable_input_require_grads`: in some families it also sends gradients through
    the frozen vision encoder. That encoder's segments have no gradients, which torch would warn of.
    """
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))


def text_config(model: Any) -> Any:
    return model.config.get_text_config()


def text_body(model: Any) -> nn.Module:
    """VLM-body with its word embeddings: the text model below the head."""
    return model.get_submodule(family_of(model.config).body.rstrip("."))


def question_features(z_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """z_q, [B, Q, D] with Q the longest question; positions from each sample's own length on are padding."""
    return z_BSD[:, : int(batch.question_lengths_B.max())]


def answer_features(z_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """z_a, [B, A, D]: the features at the answer's own positions."""
    return z_BSD.gather(1, _index(batch, shift=0, width=z_BSD.shape[-1]))


def predicting_features(z_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[B, A, D]: the features that predict the answer's tokens, one position earlier than `answer_features`.

    The first is the last question position.
    """
    return z_BSD.gather(1, _index(batch, shift=-1, width=z_BSD.shape[-1]))


def _index(batch: Batch, *, shift: int, width: int) -> torch.Tensor:
    answer_length = batch.answer_ids_BA.shape[1]
    offsets = torch.arange(answer_length, device=batch.question_lengths_B.device) + shift
    positions_BA = batch.question_lengths_B[:, None] + offsets[None]
    # Padded answer positions may point past the sequence; the answer mask drops what is read there.
    positions_BA = positions_BA.clamp(max=batch.input_ids_BS.shape[1] - 1)
    return positions_BA[:, :, None].expand(-1, -1, width)
