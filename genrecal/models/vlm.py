"""A VLM as the paper cuts it: embed -> VLM-body -> VLM-head.

    input ids, pixels --(vision encoder, projector, word embedding, VLM-body)--> z_BSD --(VLM-head)--> logits

z is exactly what the head reads: the features after the body's last norm.
"""

from __future__ import annotations

from typing import Any

import torch

from genrecal.data.batch import Batch


def body_features(model: Any, batch: Batch) -> torch.Tensor:
    """z of every position, [B, S, D]."""
    output = model.model(
        input_ids=batch.input_ids_BS,
        attention_mask=batch.attention_mask_BS,
        use_cache=False,
        return_dict=True,
        **batch.vision,
    )
    return output.last_hidden_state


def text_config(model: Any) -> Any:
    return model.config.get_text_config()


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
