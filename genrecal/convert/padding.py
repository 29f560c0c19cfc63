"""The heads that NVLM-D adds to InternViT's real ones, so that their number is divisible.

    heads     |  real  |  padding  |
    values    |   v    |   v_pad   |      out = proj v + proj_pad v_pad
    output    |  proj  |  proj_pad |

They can be left out if each padded channel is zero in the values or in the output projection. The two are
different weights, which may lie in different shards.
"""

from __future__ import annotations

import re

import torch

from genrecal.core.errors import ModelError

NAME = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)")


class PaddingCheck:
    """Sees weights in any order and raises when padding turns out to be in use."""

    def __init__(self, vision_width: int) -> None:
        self.vision_width = vision_width
        self._used: dict[tuple[str, str], torch.Tensor] = {}  # layer, "qkv" or "proj": [padded channels]

    def see(self, name: str, weight: torch.Tensor) -> None:
        """Take note of one weight by its authors' name.

        Raises:
            ModelError: a padded channel carries something in both weights.
        """
        found = NAME.fullmatch(name)
        if found is None:
            return
        layer, part, kind = found.groups()
        if part == "qkv":
            padded = weight.chunk(3)[2][self.vision_width :]
        elif kind == "weight":
            padded = weight[:, self.vision_width :].t()
        else:
            return
        if not len(padded):
            return
        used = padded.ne(0).flatten(1).any(dim=1) if padded.dim() > 1 else padded.ne(0)
        known = self._used.get((layer, part))
        self._used[layer, part] = used = used if known is None else used | known
        other = self._used.get((layer, "proj" if part == "qkv" else "qkv"))
        if other is not None and bool((used & other).any()):
            raise ModelError(
                f"the heads behind the {self.vision_width} channels are in use, so they cannot be left out",
                where=name,
            )
