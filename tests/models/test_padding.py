"""Padding on the left equals padding on the right: features and losses of a sample know nothing of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genrecal.core.images import open_image
from genrecal.data.batch import Batch, collate_one
from genrecal.data.llava import read_llava
from genrecal.data.pair import TokenizedSample, tokenize
from genrecal.models.processors import load_model, load_processor
from genrecal.models.vlm import body_features
from genrecal.train.losses import answer_cross_entropy
from tests.tiny import TinyData, TinyPair

# Two images, one image, none; answers of several lengths.
SAMPLES = (4, 0, 8, 2)


@pytest.fixture(scope="module", params=["teacher", "student"])
def folder(request: pytest.FixtureRequest, tiny_pair: TinyPair) -> Path:
    return getattr(tiny_pair, request.param)


def rows_of(folder: Path, data: TinyData) -> tuple[list[TokenizedSample], int]:
    processor = load_processor(folder)
    samples = read_llava(data.path)
    rows = [
        tokenize(
            samples[place],
            processor,
            [open_image(image) for image in samples[place].images],
            max_tokens=4096,
        )
        for place in SAMPLES
    ]
    return rows, processor.tokenizer.pad_token_id


def on_the_left(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The batch with each row's padding moved to its head, and how long that is, [B]."""
    lengths_B = batch.attention_mask_BS.sum(1)
    shifts_B = batch.attention_mask_BS.shape[1] - lengths_B

    def moved(values_BS: torch.Tensor) -> torch.Tensor:
        pairs = zip(values_BS, shifts_B.tolist(), strict=True)
        return torch.stack([row.roll(shift) for row, shift in pairs])

    return replace(
        batch,
        input_ids_BS=moved(batch.input_ids_BS),
        attention_mask_BS=moved(batch.attention_mask_BS),
        token_inputs={name: moved(value) for name, value in batch.token_inputs.items()},
    ), shifts_B


@torch.no_grad()
def test_features_and_losses_are_those_of_right_padding(folder: Path, tiny_data: TinyData) -> None:
    rows, padding = rows_of(folder, tiny_data)
    model = load_model(folder).eval()
    right = collate_one(rows, padding=padding)
    left, shifts_B = on_the_left(right)
    assert int(shifts_B.max()) > 5 and int(shifts_B.min()) == 0
    z_right_BSD, z_left_BSD = body_features(model, right), body_features(model, left)
    for row, shift, mine, other in zip(rows, shifts_B.tolist(), z_right_BSD, z_left_BSD, strict=True):
        whole = len(row.question_ids) + len(row.answer_ids)
        torch.testing.assert_close(other[shift : shift + whole], mine[:whole], atol=1e-4, rtol=1e-4)
        start = len(row.question_ids) - 1
        losses = [
            answer_cross_entropy(
                model.get_output_embeddings()(z[first : first + len(row.answer_ids)]), row.answer_ids
            )
            for z, first in ((mine, start), (other, shift + start))
        ]
        torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=0)
