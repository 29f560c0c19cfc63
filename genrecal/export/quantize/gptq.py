"""4 bits by more than rounding: GPTQ, which rounds a weight so that its products change least.

    minimise |X W - X W'|^2      X: what the weight was multiplied with on calibration prompts

Channels are rounded one after the other; what one lost is made up for by the channels that are still to come,
as far as the second moments H = X^T X of the inputs say that they can (Frantar et al., GPTQ, 2210.17323).
Image tokens outnumber text tokens and say less about the answer (MBQ, 2412.19509), so both kinds weigh the
same in H, whatever their numbers.

The moments of a few products are in memory at a time: the part of the graph that they need runs again for
the next ones.

Shapes: K input channels, N output channels, B a block, R tokens of a prompt and its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from genrecal.export.graph_parity import decoder_feed
from genrecal.export.quantize.blocks import Array, Coded, codes_of, scales_of
from genrecal.export.quantize.taps import activations, tapped
from genrecal.export.quantize.weights import products
from genrecal.export.reference import Reference

# Of the moments' mean diagonal, added to it, so that they can be inverted.
DAMPING = 0.01
# Of moments that are in memory at a time.
MOMENT_BYTES = 1 << 30


class Gptq:
    """A `Rounding` of a decoder's weights.

    Args:
        source: the float decoder.
        references: calibration prompts with the student's own answers.
    """

    def __init__(self, source: Path, references: Sequence[Reference]) -> None:
        self._source, self._references = source, references
        model = onnx.load(source, load_external_data=False)
        self._sizes = {name: tensor.dims[0] for name, tensor in products(model).items()}
        self._taken = activations(model)
        self._moments: dict[str, Tensor] = {}

    def __call__(self, name: str, weight_KN: Array, bits: int, block: int, dtype: Any) -> Iterator[Coded]:
        if self._taken[name] not in self._moments:
            self._moments = {}  # gone before the next ones come
            self._moments = self._measure(name)
        moments_KK = self._moments[self._taken[name]]
        yield rounded(torch.tensor(np.asarray(weight_KN, np.float32)), moments_KK, bits, block, dtype)

    def _measure(self, first: str) -> dict[str, Tensor]:
        """Second moments of what `first` and the weights behind it are multiplied with."""
        names = list(self._sizes)
        sizes: dict[str, int] = {}
        for name in names[names.index(first) :]:
            sizes.setdefault(self._taken[name], self._sizes[name])
            if sum(4 * size**2 for size in sizes.values()) > MOMENT_BYTES and len(sizes) > 1:
                sizes.popitem()
                break
        found = {value: torch.zeros(size, size) for value, size in sizes.items()}
        with tapped(self._source, list(sizes)) as session:
            for reference in self._references:
                feed = decoder_feed(session, reference)
                text_R = ~reference.is_image_S
                for value, x in zip(sizes, session.run(list(sizes), feed), strict=True):
                    x_RK = torch.tensor(x.reshape(-1, x.shape[-1]).astype(np.float32))
                    for chosen_R in (text_R, ~text_R):
                        if chosen_R.any():
                            part_RK = x_RK[torch.from_numpy(chosen_R)]
                            found[value] += part_RK.T @ part_RK / len(part_RK)
        return found


def rounded(weight_KN: Tensor, moments_KK: Tensor, bits: int, block: int, dtype: Any) -> Coded:
    """The weight's codes and scales."""
    inputs, outputs = weight_KN.shape
    weight_NK, half = weight_KN.T.contiguous(), 1 << (bits - 1)
    upper_KK = _inverse_root(moments_KK)
    groups = -(-inputs // block)
    codes_NGB = np.full((outputs, groups, block), half, np.uint8)
    scales_NG = np.zeros((outputs, groups), dtype)
    for group in range(groups):
        start, stop = group * block, min((group + 1) * block, inputs)
        scales_NG[:, group] = scales_of(weight_NK[:, None, start:stop].numpy(), bits)[:, 0].astype(dtype)
        scale_N = torch.tensor(scales_NG[:, group].astype(np.float32))
        lost_NB = torch.zeros(outputs, stop - start)
        for channel in range(start, stop):
            value_N = weight_NK[:, channel]
            code_N = codes_of(value_N[:, None].numpy(), scales_NG[:, group], bits)[:, 0]
            codes_NGB[:, group, channel - start] = code_N
            kept_N = (torch.from_numpy(code_N).float() - half) * scale_N
            lost_N = (value_N - kept_N) / upper_KK[channel, channel]
            lost_NB[:, channel - start] = lost_N
            weight_NK[:, channel:stop] -= lost_N[:, None] * upper_KK[channel, channel:stop]
        weight_NK[:, stop:] -= lost_NB @ upper_KK[start:stop, stop:]
    return Coded(codes_NGB=codes_NGB, scales_NG=scales_NG)


def _inverse_root(moments_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of the moments' inverse."""
    moments_KK = moments_KK.double()
    diagonal_K = moments_KK.diagonal()
    damped_K = diagonal_K + DAMPING * diagonal_K.mean()
    # A channel that is always zero may be rounded in any way.
    damped_K = torch.where(damped_K > 0, damped_K, 1.0)
    lower_KK = torch.linalg.cholesky(moments_KK - torch.diag(diagonal_K) + torch.diag(damped_K))
    return torch.linalg.cholesky(torch.cholesky_inverse(lower_KK), upper=True).float()
