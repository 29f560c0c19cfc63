"""What the loss over a large vocabulary costs: memory and time, side by side with plain torch.

    python -m benchmarks.loss_memory run

One step of stage 1's loss through the teacher's head, both branches, forward and backward. Every measurement
is a process of its own, because a peak of memory never falls again; the methods take turns, because a machine
is not equally fast all the time.

    plain      losses.py on whole logits, as torch's autograd keeps them; the teacher's are shared
    chunked    genrecal/train/head.py
    liger      liger-kernel's chunked JSD, once for each branch; on a CUDA device that has it

    RESULTS/loss_memory.json    sizes, versions, every turn's measurements, and the ratios to plain

On a CUDA device the default width is 8,192 and the weights are bf16. Shapes: T tokens, D width, V entries.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrecal.core.console import console, errors
from genrecal.core.errors import BenchError, GenrecalError
from genrecal.core.files import read_json, write_json

if TYPE_CHECKING:
    import torch

RESULTS = Path(__file__).parent / "results"
NAME = "loss_memory.json"
# Copies of the [T, V] logits in float32 that plain torch holds at its peak: 11, and some room.
PLAIN_COPIES = 11.5

app = typer.Typer(add_completion=False, no_args_is_help=True)

Tokens = Annotated[int, typer.Option(min=1)]
Entries = Annotated[int, typer.Option(min=2, help="Of the vocabulary; default: Qwen2.5's.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One pass of one method."""

    method: str
    seconds: float
    cpu_seconds: float  # of this process: what other processes take is not in it
    extra_bytes: int  # at the peak, beyond the weights and what the losses are given
    total: float
    gradient_norm: float  # with `total` it shows that the methods compute the same


@app.command()
def run(
    tokens: Tokens = 2048,
    width: Annotated[int | None, typer.Option(help="Default: 1,024; on a CUDA device 8,192.")] = None,
    entries: Entries = 152_064,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    results: Annotated[Path, typer.Option(help="Folder of loss_memory.json.")] = RESULTS,
) -> None:
    """Measure every method that this machine can run, in turns, and write the ratios.

    Turns that were measured before with the same sizes and versions on the same device are kept.
    """
    import torch

    cuda = torch.cuda.is_available()
    sizes = {"tokens": tokens, "width": width or (8192 if cuda else 1024), "entries": entries}
    methods = ["plain", "chunked"] + (["liger"] if cuda and importlib.util.find_spec("liger_kernel") else [])
    setting = {
        "command": " ".join(["python -m benchmarks.loss_memory", *sys.argv[1:]]),
        "sizes": sizes,
        "device": torch.cuda.get_device_name() if cuda else f"{_cpu()}, 1 thread",
        "dtype": "bfloat16" if cuda else "float32",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", *(["liger-kernel"] if "liger" in methods else []))},
    }
    turns = _measured_before(results / NAME, setting)
    while len(turns) < repeats:
        turn = []
        for method in methods:
            if method == "plain" and not cuda:
                _check_memory(tokens, entries)
            turn.append(_measured_alone(method, sizes))
            console.print(
                f"{len(turns) + 1}/{repeats} {method}: {turn[-1].seconds:.1f} s"
                f" ({turn[-1].cpu_seconds:.1f} s of CPU), {turn[-1].extra_bytes / 2**20:,.0f} MiB more"
            )
        turns.append(turn)
        found = {method: ratios([cost for turn in turns for cost in turn], method) for method in methods[1:]}
        measured = [[asdict(cost) for cost in turn] for turn in turns]
        write_json(results / NAME, setting | {"ratios": found, "turns": measured})
    console.print(json.dumps(read_json(results / NAME)["ratios"], indent=2))


def _measured_before(path: Path, setting: dict[str, Any]) -> list[list[Cost]]:
    record = read_json(path) if path.is_file() else {}
    same = all(record.get(name) == setting[name] for name in ("sizes", "device", "dtype", "versions"))
    return [[Cost(**cost) for cost in turn] for turn in record["turns"]] if same else []


@app.command()
def one(
    method: str,
    tokens: Tokens,
    width: Annotated[int, typer.Option(min=1)],
    entries: Entries,
) -> None:
    """One measurement, printed as JSON."""
    cost = measure(method, tokens=tokens, width=width, entries=entries)
    print(json.dumps(asdict(cost)))


def measure(method: str, *, tokens: int, width: int, entries: int) -> Cost:
    """One pass in this process, whose peak of memory must not have been higher before."""
    import torch

    from edge.memory import peak_memory_bytes

    cuda = torch.cuda.is_available()
    place: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16} if cuda else {}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = torch.nn.Linear(width, entries, bias=False, **place).requires_grad_(False)
    # Logits about as wide as a model's: those of default weights are nearly equal.
    scale = 3 * 3**0.5
    given = [scale * torch.randn(tokens, width, **place) for _ in range(3)]
    teacher_TD, branches = given[0], [one.requires_grad_(True) for one in given[1:]]
    labels_T = torch.randint(0, entries, (tokens,), device=place.get("device"))
    # What libraries allocate once is no part of the pass.
    METHODS[method](head, teacher_TD[:2], [one[:2] for one in branches], labels_T[:2]).backward()
    for one_TD in branches:
        one_TD.grad = None
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident_bytes()
    started, cpu_started = time.perf_counter(), time.process_time()
    total = METHODS[method](head, teacher_TD, branches, labels_T)
    total.backward()
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak = torch.cuda.max_memory_allocated() if cuda else peak_memory_bytes()
    gradients = [one_TD.grad for one_TD in branches if one_TD.grad is not None]
    return Cost(
        method=method,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        extra_bytes=peak - before,
        total=float(total.detach()),
        gradient_norm=float(torch.stack([one.float().norm() for one in gradients]).norm()),
    )


def plain(
    head: Any, teacher_TD: torch.Tensor, branches: list[torch.Tensor], labels_T: torch.Tensor
) -> torch.Tensor:
    """Mean CE + KL of both branches on whole logits."""
    import torch

    from genrecal.train.losses import answer_cross_entropy, teacher_divergence

    with torch.no_grad():
        teacher_TV = head(teacher_TD)
    totals = []
    for r_TD in branches:
        logits_TV = head(r_TD)
        losses_T = answer_cross_entropy(logits_TV, labels_T) + teacher_divergence(teacher_TV, logits_TV)
        totals.append(losses_T.sum() / len(labels_T))
    return totals[0] + totals[1]


def chunked(
    head: Any, teacher_TD: torch.Tensor, branches: list[torch.Tensor], labels_T: torch.Tensor
) -> torch.Tensor:
    """The same, by `Head`."""
    from genrecal.train.head import Branch, Head

    scale = 1 / len(labels_T)
    both = [Branch(z_TD=r_TD, ce=scale, kl=scale) for r_TD in branches]
    return Head(_Owner(head)).losses(both, labels_T, teacher_TD).total


def liger(
    head: Any, teacher_TD: torch.Tensor, branches: list[torch.Tensor], labels_T: torch.Tensor
) -> torch.Tensor:
    """Mean CE + JSD of both branches: another divergence of the same cost, one branch in one call."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=1.0, beta=0.5)
    weight_VD = head.weight
    return sum(loss(r_TD, weight_VD, teacher_TD, weight_VD, labels_T, None, None) for r_TD in branches)


METHODS = {"plain": plain, "chunked": chunked, "liger": liger}


class _Owner:
    """A model that is nothing but a head."""

    def __init__(self, head: Any) -> None:
        self._head = head

    def get_output_embeddings(self) -> Any:
        return self._head


def ratios(costs: list[Cost], method: str) -> dict[str, float]:
    """Of a method to plain torch: medians over the turns that both took."""
    base = [cost for cost in costs if cost.method == "plain"]
    own = [cost for cost in costs if cost.method == method]
    return {
        field: median(
            getattr(one, field) / getattr(other, field) for one, other in zip(own, base, strict=True)
        )
        for field in ("extra_bytes", "seconds", "cpu_seconds", "total", "gradient_norm")
    }


def resident_bytes() -> int:
    """What this process holds resident now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _measured_alone(method: str, sizes: dict[str, int]) -> Cost:
    arguments = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss_memory", "one", method, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        killed = " (killed: out of memory?)" if done.returncode == -9 else ""
        raise BenchError(f"the measurement failed{killed}: {lines[-1]}", where=method)
    return Cost(**json.loads(done.stdout.strip().splitlines()[-1]))


def _check_memory(tokens: int, entries: int) -> None:
    import psutil

    needed, there = PLAIN_COPIES * tokens * entries * 4, psutil.virtual_memory().available
    if needed > there:
        raise BenchError(
            f"plain torch needs about {needed / 2**30:.0f} GiB and {there / 2**30:.0f} GiB are free",
            fix="Free some, or lower --tokens",
        )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Run a command; what went wrong is one line."""
    try:
        app()
    except GenrecalError as error:
        errors.print(f"error: {error}", highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
