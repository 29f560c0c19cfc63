"""Two heads in chunks, recomputed: the same losses and gradients as on whole logits."""

from __future__ import annotations

import pytest
import torch

from genrecal.train import head as head_module
from genrecal.train.head import Head
from genrecal.train.head_pair import HeadPair
from genrecal.train.losses import reverse_divergence, sorted_distance
from tests.train.test_head import ENTRIES, TOKENS, Model, features


@pytest.fixture(params=[1, 5, 1000])
def heads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[HeadPair, Model, Model]:
    """A frozen and a trained one, with so many tokens to a chunk."""
    monkeypatch.setattr(head_module, "CHUNK_BYTES", request.param * 2 * 4 * ENTRIES)
    torch.manual_seed(0)
    teacher, student = Model(), Model(trained=True)
    return HeadPair(Head(teacher), Head(student)), teacher, student


def weighted(p_TV: torch.Tensor, q_TV: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    return reverse_divergence(p_TV, q_TV) * weight_T


def test_losses_and_gradients_are_those_of_whole_logits(heads: tuple[HeadPair, Model, Model]) -> None:
    pair, teacher, student = heads
    weight_T = torch.rand(TOKENS, requires_grad=True)
    z_l, z_s = features(1, grad=False), features(2)
    inputs = [z_s, weight_T, student.linear.weight]
    found_T = pair(weighted, z_l, z_s, weight_T)
    gradients = torch.autograd.grad(found_T.square().sum(), inputs)
    expected_T = weighted(teacher.linear(z_l), student.linear(z_s), weight_T)
    expected = torch.autograd.grad(expected_T.square().sum(), inputs)
    assert torch.allclose(found_T, expected_T, rtol=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        assert other.abs().max() > 1e-2
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


def test_one_head_alone(heads: tuple[HeadPair, Model, Model]) -> None:
    pair, teacher, student = heads
    z = features(2, grad=False)
    for given, model in (((z, None), teacher), ((None, z), student)):
        found_T = pair(lambda logits_TV: logits_TV.logsumexp(-1), *given)
        assert torch.allclose(found_T, model.linear(z).logsumexp(-1))


def test_no_token_has_a_gradient_path(heads: tuple[HeadPair, Model, Model]) -> None:
    pair, _, student = heads
    z_s = features(2, tokens=0)
    found_T = pair(reverse_divergence, features(1, tokens=0, grad=False), z_s)
    assert found_T.shape == (0,)
    found_T.sum().backward()
    assert z_s.grad is not None and not student.linear.weight.grad.any()


def test_logits_are_kept_by_no_graph(heads: tuple[HeadPair, Model, Model]) -> None:
    """What a chunk's loss saves for autograd, here whole matrices, is gone when the forward pass ends."""
    pair, _, _ = heads
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    def distance(p_TV: torch.Tensor, q_TV: torch.Tensor) -> torch.Tensor:
        return sorted_distance(p_TV.softmax(-1), q_TV.softmax(-1))

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found_T = pair(distance, features(1, grad=False), features(2))
        assert found_T.requires_grad
        assert not [shape for shape in kept if ENTRIES in shape]
