"""From traced graphs to those of a build: moved as they are, or quantized as the target's scheme has it.

fp32 or fp16 graph -> scheme without weights -> moved
                   -> Static                 -> calibrated with images
                   -> Blocks, Dynamic, Rows  -> weights alone; of the decoder, what each one costs
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge import build as layout
from genrecal.core.console import console
from genrecal.export import sensitivity, vision_attention
from genrecal.export.initializers import initializer_bytes
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize.blocks import Rounding, nearest
from genrecal.export.quantize.gptq import Gptq
from genrecal.export.quantize.schemes import Blocks, GraphScheme, Scheme, Static, described
from genrecal.export.quantize.static import quantize_static
from genrecal.export.quantize.weights import quantize_weights
from genrecal.export.reference import Reference

# Of files that are traced in float16.
HALF = "_fp16"
# A decoder of no more bytes is measured weight by weight at every export.
SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the weights of a build are rounded by."""

    calibration: list[Reference]
    """Torch's answers to questions of the training data; empty where there is none."""
    asked: list[Reference]
    """Those of the report."""
    keep: Collection[str] | str
    """Weights that stay in float16, or `sensitivity.AUTO`."""


def write_graphs(
    student: Path, fp32: Path, folder: Path, scheme: Scheme, form: str, choice: Choice
) -> dict[str, Any]:
    """Move or quantize graphs into `folder`; returns what was done to each."""
    halves = [graph for graph, of_graph in scheme.items() if of_graph.computes_in == "fp16"]
    traced = fp32 / "onnx"
    if halves:
        console.print("export: tracing in float16")
        export_graphs(student, traced, precision="fp16", suffix=HALF, only=halves, vision_form=form)
    (folder / "onnx").mkdir()
    details = {}
    for graph, of_graph in scheme.items():
        source = traced / f"{graph}{HALF if graph in halves else ''}.onnx"
        target = folder / layout.graph_file(graph, of_graph.suffix)
        details[graph] = {**described(of_graph), **_write_graph(source, target, of_graph, choice)}
    return details


def vision_form(target: str) -> str:
    """How the vision encoder's attention is written: TensorRT takes no operator of ONNX Runtime's own."""
    return vision_attention.PARTS if target == "jetson-tensorrt" else vision_attention.FUSED


def _write_graph(source: Path, target: Path, scheme: GraphScheme, choice: Choice) -> dict[str, Any]:
    if scheme.weights is None:
        for path in source.parent.glob(f"{source.name}*"):  # the graph, and what lies beside it
            path.replace(target.parent / path.name)
        return {"bytes": initializer_bytes(target)}
    console.print(f"export: quantizing {target.name}")
    if isinstance(scheme.weights, Static):
        feeds = [feed for reference in choice.calibration for feed in reference.feeds]
        return quantize_static(source, target, scheme, feeds)
    if not source.name.startswith(layout.DECODER):
        return {"rounding": "nearest", **quantize_weights(source, target, scheme)}
    return _write_decoder(source, target, scheme, choice)


def _write_decoder(source: Path, target: Path, scheme: GraphScheme, choice: Choice) -> dict[str, Any]:
    assert isinstance(scheme.weights, Blocks)
    rounding: Rounding = nearest
    how = "nearest"
    if choice.calibration and scheme.weights.bits < 8:
        rounding = Gptq(source, choice.calibration)
        how = f"gptq, {len(choice.calibration)} prompts of the training data"
    automatic = choice.keep == sensitivity.AUTO
    costs: list[sensitivity.Cost] = []
    # A large decoder takes minutes a weight, so only who asks for it gets it.
    if automatic or initializer_bytes(source) <= SMALL_BYTES:
        console.print("export: quantizing each weight alone")
        costs = sensitivity.measure(source, scheme, choice.calibration or choice.asked, rounding=rounding)
    kept = choice.keep
    if automatic:
        plain = quantize_weights(source, target, scheme, rounding=rounding)
        kept = sensitivity.worth_keeping(costs, decoder_bytes=plain["bytes"])
    names = sensitivity.stored_names(source, kept)
    return {
        "rounding": how,
        **quantize_weights(source, target, scheme, rounding=rounding, keep=names),
        **({"costliest": [asdict(cost) for cost in costs[: sensitivity.NAMED]]} if costs else {}),
    }


def print_costs(details: dict[str, Any]) -> None:
    """The weights whose quantization costs most, and what was kept for it."""
    for cost in details[layout.DECODER].get("costliest", []):
        console.print(
            f"costs {cost['divergence']:.1e} nats a token, {cost['changed']} tokens: {cost['weight']} "
            f"in {cost['bits']} bits",
            markup=False,
        )
    for name, entry in details[layout.DECODER].get("kept_higher", {}).items():
        console.print(f"kept: {sensitivity.public_name(name)}, {entry['stored']}", markup=False)
