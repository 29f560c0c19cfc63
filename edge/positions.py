"""Where every token stands, for the decoder's rotary embedding.

Most families: a token's place in the sequence. Qwen2-VL and Qwen2.5-VL: three axes, time, height and width:

    text     one step for each token, the same on all three axes
    image    one time, its rows and its columns, all counted from the position after the text before it
    after    the text goes on from the largest position so far plus one

An image of h x w tokens so advances the count by max(h, w), not by h * w: what is decoded later stands at
its place in the sequence plus a delta that is zero or negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genrecal.core.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Positions of a prompt on A axes, 1 or 3, and what decoding adds to the place of a new token."""

    ids_AS: NDArray[np.int64]
    delta: int

    def next(self, place: int, count: int = 1) -> NDArray[np.int64]:
        """Positions_AS of `count` text tokens whose first one is the sequence's token number `place`."""
        return np.tile(np.arange(place, place + count, dtype=np.int64) + self.delta, (len(self.ids_AS), 1))


def plain_positions(tokens: int) -> Positions:
    """Positions of a prompt in families where a position is a token's place."""
    return Positions(ids_AS=np.arange(tokens, dtype=np.int64)[None], delta=0)


def rope_positions(
    input_ids_S: NDArray[np.int64], grid_I3: NDArray[np.int64], *, image_token: int, merge: int
) -> Positions:
    """Positions of a prompt with images on three axes.

    Args:
        input_ids_S: token ids, every image already as long as its grid says.
        grid_I3: time, height and width of each image in patches, in the order of the prompt.
        image_token: the id that stands for image features.
        merge: patches along one side that make one token.

    Raises:
        DataError: the image tokens in the prompt are not those of the grids.
    """
    is_image_S = input_ids_S == image_token
    pieces: list[NDArray[np.int64]] = []
    place = position = 0
    for time, height, width in grid_I3.tolist():
        shape = (time, height // merge, width // merge)
        size = shape[0] * shape[1] * shape[2]
        text = int(np.argmax(is_image_S[place:])) if is_image_S[place:].any() else len(input_ids_S)
        start = place + text
        if not is_image_S[start : start + size].all() or start + size > len(input_ids_S):
            raise DataError(f"the prompt does not hold the {size} tokens of an image")
        pieces.append(np.tile(np.arange(position, position + text), (3, 1)))
        pieces.append(np.indices(shape).reshape(3, -1) + position + text)
        position += text + max(shape)
        place = start + size
    if is_image_S[place:].any():
        raise DataError("the prompt holds more image tokens than its images have")
    pieces.append(np.tile(np.arange(position, position + len(input_ids_S) - place), (3, 1)))
    ids_3S = np.concatenate(pieces, axis=1).astype(np.int64)
    return Positions(ids_AS=ids_3S, delta=int(ids_3S.max(initial=-1)) + 1 - len(input_ids_S))
