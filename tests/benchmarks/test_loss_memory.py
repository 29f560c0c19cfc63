"""The loss over a large vocabulary: its methods agree, and the committed measurement holds its bars."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import loss_memory
from benchmarks.loss_memory import METHODS, NAME, RESULTS, Cost, app, ratios
from genrecal.core.errors import BenchError
from genrecal.core.files import read_json

TOKENS, WIDTH, ENTRIES = 9, 16, 70


def passed(method: str) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, ENTRIES, bias=False).requires_grad_(False)
    teacher_TD, *branches = (3 * torch.randn(TOKENS, WIDTH) for _ in range(3))
    branches = [one.requires_grad_(True) for one in branches]
    labels_T = torch.randint(0, ENTRIES, (TOKENS,))
    total = METHODS[method](head, teacher_TD, branches, labels_T)
    total.backward()
    return float(total.detach()), [one.grad for one in branches if one.grad is not None]


def test_both_compute_the_same() -> None:
    (total, gradients), (other, others) = passed("plain"), passed("chunked")
    assert total == pytest.approx(other, rel=1e-6) and len(gradients) == len(others) == 2
    for one, same in zip(gradients, others, strict=True):
        assert torch.allclose(one, same, rtol=1e-4, atol=1e-7)


def test_ratios_are_medians_over_the_turns() -> None:
    def cost(method: str, seconds: float) -> Cost:
        return Cost(
            method=method, seconds=seconds, cpu_seconds=2.0, extra_bytes=10, total=1.0, gradient_norm=1.0
        )

    turns = [
        ("plain", 1.0),
        ("chunked", 0.5),
        ("plain", 10.0),
        ("chunked", 9.0),
        ("plain", 2.0),
        ("chunked", 8.0),
    ]
    found = ratios([cost(*one) for one in turns], "chunked")
    assert found["seconds"] == 0.9 and found["extra_bytes"] == 1.0


def test_too_little_memory_is_an_error() -> None:
    with pytest.raises(BenchError, match="plain torch needs about"):
        loss_memory._check_memory(10**9, 10**6)


def test_the_committed_measurement_holds_the_bars() -> None:
    """A tenth of plain torch's memory, and no more than 1.1 times its time; the same loss and gradient."""
    record = read_json(RESULTS / NAME)
    assert record["sizes"] == {"tokens": 2048, "width": 1024, "entries": 152_064}
    chunked = record["ratios"]["chunked"]
    assert chunked["extra_bytes"] <= 0.1
    assert chunked["cpu_seconds"] <= 1.1 and chunked["seconds"] <= 1.1
    assert chunked["total"] == pytest.approx(1, abs=1e-5)
    assert chunked["gradient_norm"] == pytest.approx(1, abs=1e-4)


@pytest.mark.full
def test_a_small_measurement(tmp_path: Path) -> None:
    arguments = ["run", "--tokens", "256", "--width", "64", "--entries", "40000", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    record = read_json(tmp_path / NAME)
    ((plain, chunked),) = record["turns"]
    assert (plain["method"], chunked["method"]) == ("plain", "chunked")
    assert plain["extra_bytes"] > 9 * 256 * 40000 * 4  # the logits alone, nine times over
    assert chunked["total"] == pytest.approx(plain["total"], rel=1e-5)
    assert record["ratios"]["chunked"]["extra_bytes"] == chunked["extra_bytes"] / plain["extra_bytes"]
    again = CliRunner().invoke(app, [*arguments, "--results", str(tmp_path)])
    assert again.exit_code == 0 and read_json(tmp_path / NAME)["turns"] == record["turns"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: liger-kernel needs a CUDA device")
def test_liger_takes_its_turn() -> None:
    pytest.importorskip("liger_kernel")
    costs = {
        method: loss_memory.measure(method, tokens=1024, width=512, entries=32_000) for method in METHODS
    }
    assert all(cost.extra_bytes > 0 and cost.gradient_norm > 0 for cost in costs.values())
    assert costs["chunked"].total == pytest.approx(costs["plain"].total, rel=1e-2)
