"""Golden: the head in chunks against the definitions in float64, values and gradients."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from genrecal.core.errors import ModelError
from genrecal.train import head as head_module
from genrecal.train.head import Branch, Head, chunk_tokens
from tests.train import head_ranks, reference
from tests.train.conftest import TIMEOUT_S, environment

TOKENS, WIDTH, ENTRIES = 13, 16, 91


class Model:
    """All that a head asks of a VLM."""

    def __init__(self, *, bias: bool = False, trained: bool = False, embedding: Any = None) -> None:
        self.linear = nn.Linear(WIDTH, ENTRIES, bias=bias)
        if embedding is not None:
            self.linear.weight = embedding.weight
        self.linear.requires_grad_(trained)

    def get_output_embeddings(self) -> nn.Linear:
        return self.linear


def features(seed: int, *, tokens: int = TOKENS, grad: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(tokens, WIDTH, generator=generator)).requires_grad_(grad)


def labels(tokens: int = TOKENS) -> torch.Tensor:
    # The first and the last entry are among them.
    return torch.tensor([0, ENTRIES - 1, *range(5, 5 + tokens)])[:tokens]


@pytest.fixture(autouse=True)
def torch_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[1, 3, 5, 1000])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a chunk where three branches share it; 13 tokens are no multiple of 3 and 5."""
    monkeypatch.setattr(head_module, "CHUNK_BYTES", request.param * 3 * 4 * ENTRIES)
    assert chunk_tokens(ENTRIES, branches=3) == request.param
    return int(request.param)


def by_definition(
    model: Model, branches: list[Branch], labels_T: torch.Tensor, teacher_TD: torch.Tensor | None
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """The total, CE and KL of every branch, and the gradients of every z and of W, in float64."""
    weight = model.linear.weight.detach().double().requires_grad_(True)
    z = [branch.z_TD.detach().double().requires_grad_(True) for branch in branches]
    ces = [reference.cross_entropy(one @ weight.T, labels_T.tolist()) for one in z]
    kls = [torch.zeros(len(labels_T))] * len(z)
    if teacher_TD is not None:
        target = (teacher_TD.double() @ weight.T).detach()
        kls = [reference.divergence(target, one @ weight.T) for one in z]
    total = sum(
        (branch.ce or 0.0) * ce.sum() + (branch.kl or 0.0) * kl.sum()
        for branch, ce, kl in zip(branches, ces, kls, strict=True)
    )
    assert isinstance(total, torch.Tensor)
    return total, ces, kls, list(torch.autograd.grad(total, [*z, weight], materialize_grads=True))


def assert_close(found: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert found is not None
    scale = float(expected.abs().max())
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5 * scale + 1e-12)


def test_both_branches_and_the_teacher(chunk: int) -> None:
    model, teacher = Model(), features(9, grad=False)
    branches = [Branch(z_TD=features(1), ce=0.7, kl=1.3), Branch(z_TD=features(2), ce=0.25, kl=2.0)]
    found = Head(model).losses(branches, labels(), teacher)
    total, ces, kls, gradients = by_definition(model, branches, labels(), teacher)
    assert float(found.total.detach()) == pytest.approx(float(total), rel=1e-5)
    for n in range(2):
        assert_close(found.ce_NT[n], ces[n])
        assert_close(found.kl_NT[n], kls[n])
    teacher_ce_T = reference.cross_entropy(
        teacher.double() @ model.linear.weight.double().T, labels().tolist()
    )
    assert_close(found.teacher_ce_T, teacher_ce_T)
    (found.total * 3).backward()  # whatever comes from above
    for branch, gradient in zip(branches, gradients, strict=False):
        assert gradient.abs().max() > 1e-2
        assert_close(branch.z_TD.grad, 3 * gradient)
    assert model.linear.weight.grad is None


def test_branches_that_are_only_looked_at_change_nothing(chunk: int) -> None:
    """Between the others, as the probe's is; without a gradient or without a weight."""
    model, teacher = Model(), features(9, grad=False)
    alone = [Branch(z_TD=features(1), ce=0.7, kl=1.3), Branch(z_TD=features(2), ce=0.25, kl=2.0)]
    looked = [Branch(z_TD=features(3, grad=False), ce=1.0, kl=1.0), Branch(z_TD=features(4))]
    mixed = [looked[0], alone[0], looked[1], alone[1]]
    found = Head(model).losses(mixed, labels(), teacher)
    total, ces, kls, _ = by_definition(model, mixed, labels(), teacher)
    assert float(found.total.detach()) == pytest.approx(float(total), rel=1e-5)
    for n in range(4):
        assert_close(found.ce_NT[n], ces[n])
        assert_close(found.kl_NT[n], kls[n])
    found.total.backward()
    _, _, _, gradients = by_definition(model, alone, labels(), teacher)
    for branch, gradient in zip(alone, gradients, strict=False):
        assert_close(branch.z_TD.grad, gradient)
    assert all(branch.z_TD.grad is None for branch in looked)


def test_tokens_weigh_as_they_are_selected(chunk: int) -> None:
    """Two views of one value, some tokens from each: each view's gradient is that of its tokens."""
    model, teacher, one = Model(), features(9, grad=False), features(1)
    views = [one.detach().clone().requires_grad_(True) for _ in range(2)]
    first_T = torch.arange(TOKENS) % 4 == 0
    z_TD = torch.where(first_T[:, None], *views)
    Head(model).losses([Branch(z_TD=z_TD, ce=1.0, kl=0.5)], labels(), teacher).total.backward()
    whole = [Branch(z_TD=one, ce=1.0, kl=0.5)]
    _, _, _, (gradient, _) = by_definition(model, whole, labels(), teacher)
    for view, kept_T in zip(views, (first_T, ~first_T), strict=True):
        assert_close(view.grad, gradient * kept_T[:, None])


def test_a_trained_head_has_a_gradient_of_its_own(chunk: int) -> None:
    model = Model(trained=True)
    branches = [Branch(z_TD=features(1), ce=0.7), Branch(z_TD=features(2, grad=False), ce=0.4)]
    found = Head(model).losses(branches, labels())
    total, ces, _, (gradient_z, _, gradient_w) = by_definition(model, branches, labels(), None)
    assert float(found.total.detach()) == pytest.approx(float(total), rel=1e-5)
    assert_close(found.ce_NT[1], ces[1])
    assert not found.kl_NT.any() and not len(found.teacher_ce_T)
    found.total.backward()
    assert_close(branches[0].z_TD.grad, gradient_z)
    assert_close(model.linear.weight.grad, gradient_w)


def test_a_trained_head_with_a_teacher(chunk: int) -> None:
    """The teacher's side of the KL is a constant, though it goes through the same matrix."""
    model, teacher = Model(trained=True), features(9, grad=False)
    branches = [Branch(z_TD=features(1), ce=0.7, kl=0.5)]
    Head(model).losses(branches, labels(), teacher).total.backward()
    _, _, _, (gradient_z, gradient_w) = by_definition(model, branches, labels(), teacher)
    assert_close(branches[0].z_TD.grad, gradient_z)
    assert_close(model.linear.weight.grad, gradient_w)


def test_a_tied_head_adds_to_the_gradient_of_the_embeddings(chunk: int) -> None:
    embedding = nn.Embedding(ENTRIES, WIDTH)
    model = Model(trained=True, embedding=embedding)
    ids = torch.arange(TOKENS) * 2
    Head(model).losses([Branch(z_TD=embedding(ids), ce=0.5)], labels()).total.backward()
    weight = embedding.weight.detach().double().requires_grad_(True)
    total = 0.5 * reference.cross_entropy(weight[ids] @ weight.T, labels().tolist()).sum()
    (gradient,) = torch.autograd.grad(total, weight)
    assert_close(embedding.weight.grad, gradient)


@pytest.mark.parametrize("trained", [False, True])
def test_no_token_at_all(trained: bool) -> None:
    """A zero that the gradient passes through, so that every rank walks back through the same modules."""
    model = Model(trained=trained)
    z = [features(seed, tokens=0) for seed in (1, 2)]
    found = Head(model).losses(
        [Branch(z_TD=one, ce=1.0, kl=1.0) for one in z], labels(0), features(9, tokens=0, grad=False)
    )
    assert float(found.total.detach()) == 0.0 and found.ce_NT.shape == (2, 0)
    found.total.backward()
    assert all(one.grad is not None and one.grad.shape == (0, WIDTH) for one in z)
    weight = model.linear.weight
    assert (weight.grad is None) if not trained else not weight.grad.any()


def test_without_gradients_there_are_none(chunk: int) -> None:
    model = Model(trained=True)
    with torch.no_grad():
        found = Head(model).losses([Branch(z_TD=features(1), ce=1.0)], labels())
    assert not found.total.requires_grad
    frozen = Head(Model()).losses([Branch(z_TD=features(1))], labels())
    assert not frozen.total.requires_grad and float(frozen.total) == 0.0


def test_padding_entries_are_classes(chunk: int) -> None:
    """Rows of W beyond every label take their share of the softmax, as in the model's own loss."""
    model, z = Model(), features(1)
    found = Head(model).losses([Branch(z_TD=z, ce=1.0)], labels())
    own = nn.functional.cross_entropy(model.linear(z), labels(), reduction="none")
    assert torch.allclose(found.ce_NT[0], own, rtol=1e-5)
    assert labels().max() == ENTRIES - 1
    cut = Model()
    cut.linear = nn.Linear(WIDTH, ENTRIES + 7, bias=False)
    with torch.no_grad():
        cut.linear.weight.copy_(nn.functional.pad(model.linear.weight, (0, 0, 0, 7)))
    padded = Head(cut).losses([Branch(z_TD=z, ce=1.0)], labels())
    assert (padded.ce_NT > found.ce_NT).all()


def test_bf16_products_and_float32_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what plain torch loses to bf16; the gradient of W keeps small chunks that bf16 would drop."""
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 4 * ENTRIES)
    tokens = 64
    model = Model(trained=True)
    model.linear.bfloat16()
    z = features(1, tokens=tokens).detach().bfloat16().requires_grad_(True)
    labels_T = torch.arange(tokens) % ENTRIES
    branch = Branch(z_TD=z, ce=1.0)
    found = Head(model).losses([branch], labels_T)
    assert found.ce_NT.dtype == found.total.dtype == torch.float32
    found.total.backward()
    assert z.grad is not None and z.grad.dtype == model.linear.weight.grad.dtype == torch.bfloat16
    _, (ce_T,), _, (gradient_z, gradient_w) = by_definition(model, [branch], labels_T, None)
    assert torch.allclose(found.ce_NT[0].double(), ce_T, rtol=0.02, atol=0.02)
    for gradient, expected in ((z.grad, gradient_z), (model.linear.weight.grad, gradient_w)):
        distance = (gradient.double() - expected).norm() / expected.norm()
        assert distance < 0.01  # bf16 has 2^-9 = 0.002


@pytest.mark.parametrize("odd", [nn.Linear(WIDTH, ENTRIES), nn.Identity()])
def test_a_head_that_is_more_than_a_matrix_is_refused(odd: nn.Module) -> None:
    model = Model()
    model.linear = odd  # type: ignore[assignment]
    with pytest.raises(ModelError, match="not a linear layer without bias"):
        Head(model)


def test_the_largest_vocabularies_still_make_wide_products() -> None:
    assert 3 * chunk_tokens(152_064, branches=3) > 300
    assert chunk_tokens(10**9, branches=3) == 1


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By ZeRO stage, for each batch."""
    path = tmp_path_factory.mktemp("head") / "found.json"
    command = [sys.executable, "-m", "tests.train.head_ranks", str(path)]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command,
            env=environment(RANK=rank, LOCAL_RANK=rank, **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for rank in ranks:
            printed, _ = rank.communicate(timeout=TIMEOUT_S)
            assert rank.returncode == 0, printed[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    return json.loads(path.read_text())


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_two_ranks_with_different_numbers_of_tokens(
    on_two_ranks: dict[str, list[dict[str, Any]]], stage: str
) -> None:
    """One has none at all: nobody waits, and gradients and terms are those of all tokens together."""
    for step, found in enumerate(on_two_ranks[stage]):
        module = head_ranks.Both().double()
        ids_T, labels_T = (
            torch.cat(part) for part in zip(*(head_ranks.batch(step, r) for r in (0, 1)), strict=True)
        )
        student, teacher, scales = module.student, module.teacher, head_ranks.SCALES
        z_TD = student.layer(student.embedding(ids_T))
        target_TV = teacher.layer(teacher.embedding(ids_T)) @ teacher.lm_head.weight.T
        main_TV = z_TD @ teacher.lm_head.weight.T
        terms = {
            "ar": reference.cross_entropy(main_TV, labels_T.tolist()).sum(),
            "kl": reference.divergence(target_TV, main_TV).sum(),
            "sft": reference.cross_entropy(z_TD @ student.lm_head.weight.T, labels_T.tolist()).sum(),
            "reverse_kl": reference.divergence(z_TD @ student.lm_head.weight.T, target_TV).sum(),
        }
        assert found["terms"] == pytest.approx(
            {name: float(value) for name, value in terms.items()}, rel=1e-5
        )
        total = (
            sum(scales[name] * value for name, value in terms.items()) / 2
        )  # DeepSpeed takes the ranks' mean
        expected = torch.autograd.grad(total, [module.get_parameter(name) for name in head_ranks.TRAINED])
        for name, gradient in zip(head_ranks.TRAINED, expected, strict=True):
            assert gradient.abs().max() > 1e-2
            assert_close(torch.tensor(found["gradients"][name]), gradient)


def test_zero_3_gathers_no_frozen_head_for_the_backward_pass(
    on_two_ranks: dict[str, list[dict[str, Any]]],
) -> None:
    whole = head_ranks.ENTRIES * head_ranks.WIDTH
    for stage, steps in on_two_ranks.items():
        assert [step["frozen_numbers"] for step in steps] == [0 if stage == "3" else whole] * len(steps)
