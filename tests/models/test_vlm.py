"""The cut embed -> body -> head is the model's own, for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from genrecal.core.errors import ConfigError
from genrecal.data.batch import Batch, collate_one
from genrecal.data.pair import tokenize
from genrecal.models.families import family_of
from genrecal.models.lora import LoraConfig, add_lora
from genrecal.models.vlm import (
    answer_features,
    body_features,
    layer_at,
    layer_features,
    model_inputs,
    predicting_features,
    question_features,
    recompute_activations,
    text_body,
)
from tests.families import SAMPLES, ReadFamily, noise

# float32 sums in another order: batches of other shapes take other kernels.
ROUNDING = 2e-5


@torch.no_grad()
def test_head_of_the_features_is_the_models_own_logits(family: ReadFamily) -> None:
    model, batch = family.model(), family.batch()
    ours = model.get_output_embeddings()(body_features(model, batch))
    theirs = model(**model_inputs(model, batch)).logits
    real = batch.attention_mask_BS.bool()
    assert torch.equal(ours[real], theirs[real])


@torch.no_grad()
def test_company_and_padding_move_no_feature(family: ReadFamily) -> None:
    """Text alone, one image, two images of several sizes: each as if it were read alone."""
    model, batch = family.model(), family.batch()
    longer = replace(
        batch,
        input_ids_BS=torch.nn.functional.pad(batch.input_ids_BS, (0, 20), value=1),
        attention_mask_BS=torch.nn.functional.pad(batch.attention_mask_BS, (0, 20)),
        token_inputs={
            name: torch.nn.functional.pad(value, (0, 20)) for name, value in batch.token_inputs.items()
        },
    )
    for padded in (batch, longer):
        z_BSD = body_features(model, padded)
        assert torch.isfinite(z_BSD).all()  # a NaN in the padding would spoil gradients
        for place in range(len(SAMPLES)):
            alone_1SD = body_features(model, family.batch([place]))
            assert torch.allclose(z_BSD[place, : alone_1SD.shape[1]], alone_1SD[0], atol=ROUNDING)


@torch.no_grad()
def test_images_are_read_where_they_stand(family: ReadFamily) -> None:
    """Another second image moves the features from its own first token on, and none before."""
    model, processor = family.model(), family.processor
    rows = [
        tokenize(SAMPLES[2][0], processor, [noise(48, 48, 2), noise(48, 48, seed)], max_tokens=1024)
        for seed in (3, 4)
    ]
    first, second = (
        body_features(model, collate_one([row], padding=processor.tokenizer.pad_token_id))[0] for row in rows
    )
    image = (rows[0].question_ids == processor.image_token_id).nonzero()[:, 0]
    start = int(image[len(image) // 2])  # equal sizes have equally many tokens
    moved = (first - second).abs().amax(dim=1) > ROUNDING
    assert not moved[:start].any() and moved[start:].float().mean() > 0.9 and moved[-1]


@torch.no_grad()
def test_gemma_reads_an_image_in_both_directions(family: ReadFamily) -> None:
    if not family_of(family.model().config).token_inputs:
        pytest.skip("a family without inputs for each token")
    model, batch = family.model(), family.batch([0])
    assert (
        batch.token_inputs["token_type_ids"].sum()
        == (batch.input_ids_BS == family.processor.image_token_id).sum()
    )
    causal = replace(batch, token_inputs={"token_type_ids": torch.zeros_like(batch.input_ids_BS)})
    image = (batch.input_ids_BS[0] == family.processor.image_token_id).nonzero()[:, 0]
    both, one_way = body_features(model, batch)[0], body_features(model, causal)[0]
    assert torch.allclose(both[: image[0]], one_way[: image[0]], atol=ROUNDING)
    assert (both[image[0]] - one_way[image[0]]).abs().max() > 1e-3


def test_features_are_cut_at_each_samples_own_border(family: ReadFamily) -> None:
    batch = family.batch()
    positions = torch.arange(batch.input_ids_BS.shape[1], dtype=torch.float32)
    z_BSD = positions[None, :, None].expand(len(batch.input_ids_BS), -1, 2)
    assert question_features(z_BSD, batch).shape[1] == int(batch.question_lengths_B.max())
    for shift, cut in ((0, answer_features), (-1, predicting_features)):
        found = cut(z_BSD, batch)[:, :, 0]
        for sample, start in enumerate(batch.question_lengths_B.tolist()):
            count = int(batch.answer_mask_BA[sample].sum())
            assert found[sample, :count].tolist() == [start + shift + t for t in range(count)]


@torch.no_grad()
def test_features_between_layers_are_the_models_own_hidden_states(family: ReadFamily) -> None:
    model, batch = family.model(), family.batch()
    count = len(text_body(model).layers)
    theirs = model.model(**model_inputs(model, batch), output_hidden_states=True).hidden_states
    found = layer_features(model, batch, [place / count for place in range(count + 1)])
    assert len(theirs) == len(found)
    for mine, given in zip(found, theirs, strict=True):
        assert torch.equal(mine, given)
    z_BSD, again_BSD = layer_features(model, batch, (1.0, 1.0))
    assert torch.equal(z_BSD, body_features(model, batch)) and torch.equal(z_BSD, again_BSD)
    assert not any(layer._forward_pre_hooks for layer in text_body(model).layers)


def test_depths() -> None:
    assert [layer_at(depth, 28) for depth in (0, 0.25, 0.5, 0.75, 1)] == [0, 7, 14, 21, 28]
    assert [layer_at(depth, 3) for depth in (0.1, 1 / 6, 0.5, 0.99)] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"^1\.5 is no depth of a model"):
        layer_at(1.5, 3)


def loss_and_gradients(
    family: ReadFamily, prepare: Callable[[Any], Any], batch: Batch
) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a random projection of features at three depths, in training mode, with LoRA that is not zero."""
    model = family.model()
    model.requires_grad_(False)
    torch.manual_seed(0)
    add_lora(model, LoraConfig(rank=2, alpha=4, dropout=0.0), family_of(model.config))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for value in trained.values():
            value.normal_(std=0.2)
    prepare(model)
    model.train()
    loss = torch.zeros(())
    for z_BSD in layer_features(model, batch, (0.34, 0.67, 1.0)):
        loss = loss + (z_BSD * torch.randn_like(z_BSD))[batch.attention_mask_BS.bool()].sum()
    loss.backward()
    return loss.item(), {name: value.grad for name, value in trained.items() if value.grad is not None}


def test_recomputing_activations_changes_no_gradient(family: ReadFamily) -> None:
    """Features between the layers too: a hidden state that is taken inside a segment keeps its gradient."""
    batch = family.batch()
    plain, expected = loss_and_gradients(family, lambda model: None, batch)
    recomputed, found = loss_and_gradients(family, recompute_activations, batch)
    assert recomputed == plain and found.keys() == expected.keys()
    layers = family.model().config.get_text_config().num_hidden_layers
    assert len(found) == 7 * 2 * layers
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


def test_recomputing_sends_no_gradient_through_a_frozen_encoder(family: ReadFamily) -> None:
    model = family.model()
    model.requires_grad_(False)
    recompute_activations(model)
    encoder = model.get_submodule(family_of(model.config).vision_encoder.rstrip("."))
    wanted: list[bool] = []
    for module in encoder.modules():
        module.register_forward_hook(
            lambda _, __, output: wanted.append(isinstance(output, torch.Tensor) and output.requires_grad)
        )
    model.train()
    assert body_features(model, family.batch()).requires_grad
    assert wanted and not any(wanted)
