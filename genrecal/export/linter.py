"""The placement linter: can the providers of a target run every node of a build, and where?

    cpu               CPU
    jetson            CUDA; CPU for nodes that handle shapes
    jetson-tensorrt   vision encoder: TensorRT; CUDA and CPU for nodes that handle shapes. The rest as jetson

ONNX Runtime gives a node to the first provider that has a kernel for it. One that only the CPU has stops the
GPU, copies what it reads to the CPU and copies its results back, in every layer and for every token; one that
TensorRT lacks cuts the engine in two. Neither is an error there, so nobody notices. A node that no provider
has is an error on the device.

What handles shapes: all that goes in and comes out is int64, int32 or bool, and no constant among it is
large. In these graphs such values are sizes, positions, indices and masks: one number a token or patch where
data has a number a channel of it. Quantized data is int8, uint8, int4 or uint4, so it never counts as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from edge import build as layout
from genrecal.core.console import console
from genrecal.core.errors import BuildError, ConfigError
from genrecal.export import kernels
from genrecal.export.value_types import UNKNOWN, TypedNode, typed_nodes

SHAPE_TYPES = frozenset({"int64", "int32", "bool"})
# Values of a constant that handles shapes: a table of positions of the longest context is no more.
SHAPE_VALUES = 1 << 18
# CUDA has no kernel for these, or as MatMulInteger one for int8 times int8 alone: whoever asks for a GPU's
# int8 in this way gets the CPU's.
NEVER_ON_GPU = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat")
NEVER_ON_GPU_PREFIX = "QLinear"
# Without a kernel: ONNX Runtime makes an initializer of it.
CONSTANT = "Constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A node that the target cannot run."""

    graph: str
    node: str
    operator: str
    types: str
    """Of its inputs."""
    why: str


def lint_build(folder: Path, target: str | None = None) -> None:
    """Check an opened build's graphs; None: for the target that its manifest names.

    Raises:
        BuildError: the folder is no build, or a node cannot run there.
        ConfigError: no such target.
    """
    build = layout.open_build(folder)
    chosen = build.manifest["target"] if target is None else target
    graphs = dict(zip(layout.GRAPHS, (build.vision_encoder, build.embed_tokens, build.decoder), strict=True))
    nodes = require_placed(graphs, chosen, where=folder)
    console.print(f"{folder}: all {nodes} nodes of {len(graphs)} graphs can run on {chosen}")


def require_placed(graphs: Mapping[str, Path], target: str, *, where: Path) -> int:
    """The number of nodes of the graphs, all of which the target can run.

    Args:
        graphs: graph -> its file.
        target: one of `edge.build.TARGETS`.
        where: what an error names.

    Raises:
        BuildError: there are nodes that it cannot run; all are printed, by operator, and the first is named.
        ConfigError: no such target.
    """
    if target not in layout.TARGETS:
        raise ConfigError(f"no target is called '{target}'", fix=f"Known: {', '.join(layout.TARGETS)}")
    count, findings = 0, []
    for graph, path in graphs.items():
        nodes, found = lint_graph(path, graph, target)
        count += nodes
        findings += found
    if not findings:
        return count
    for line in summary(findings):
        console.print(f"lint: {line}", soft_wrap=True, markup=False)
    first = findings[0]
    raise BuildError(
        f"{len(findings)} of {count} nodes cannot run on {target}; the first is '{first.node}' of "
        f"{first.graph}, {first.operator}({first.types}): {first.why}",
        where=where,
        fix=f"Export it for {target}, or in another precision; docs/export.md says what runs where",
    )


def lint_graph(path: Path, graph: str, target: str) -> tuple[int, list[Finding]]:
    """The number of nodes of a graph and those that the target cannot run; external data stays on disk."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BuildError("is no ONNX graph", where=path, fix="Export it again") from error
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset not in kernels.OPSETS:
        raise BuildError(
            f"is of opset {opset}, the tables of kernels have {kernels.OPSETS[0]} to {kernels.OPSETS[-1]}",
            where=path,
        )
    count, findings = 0, []
    for typed in typed_nodes(model):
        count += 1
        why = refusal(typed, graph, target)
        if why is not None:
            findings.append(
                Finding(
                    graph=graph,
                    node=typed.node.name or typed.node.output[0],
                    operator=typed.operator,
                    types=", ".join(typed.inputs),
                    why=why,
                )
            )
    return count, findings


def refusal(typed: TypedNode, graph: str, target: str) -> str | None:
    """Why the target cannot run a node; None where it can."""
    if typed.operator == CONSTANT:
        return None
    if UNKNOWN in typed.values:
        return "the type of what it reads or gives is not known"
    if target == "cpu":
        return _on_cpu(typed)
    name = typed.node.op_type
    if name in NEVER_ON_GPU or name.startswith(NEVER_ON_GPU_PREFIX):
        return "it quantizes for the CPU, and a GPU would hand it to the CPU"
    if target == "jetson-tensorrt" and graph == layout.VISION_ENCODER and not handles_shapes(typed):
        return _in_tensorrt(typed)
    why = _missing("cuda", typed)
    if why is None or (handles_shapes(typed) and _missing("cpu", typed) is None):
        return None
    return f"{why}; on {target} the CPU takes over shapes alone"


def handles_shapes(typed: TypedNode) -> bool:
    """Whether a node handles sizes, positions, indices and masks alone."""
    constants = (typed.constants[name] for name in typed.node.input if name in typed.constants)
    return typed.values <= SHAPE_TYPES and all(_size(tensor) <= SHAPE_VALUES for tensor in constants)


def summary(findings: Sequence[Finding]) -> list[str]:
    """A line for all nodes of a graph that are refused for the same reason."""

    def kind(finding: Finding) -> tuple[str, ...]:
        return finding.graph, finding.operator, finding.types, finding.why

    groups = [list(group) for _, group in groupby(sorted(findings, key=kind), key=kind)]
    return [
        f"{len(group)}x {group[0].operator}({group[0].types}) in {group[0].graph}, as '{group[0].node}': "
        f"{group[0].why}"
        for group in groups
    ]


def _on_cpu(typed: TypedNode) -> str | None:
    why = _missing("cpu", typed)
    if why is None or "float16" not in typed.values:
        return why
    # Where the CPU lacks float16, ONNX Runtime casts: it computes the node in float32.
    wider = {
        name: frozenset("float" if entry == "float16" else entry for entry in types)
        for name, types in typed.types.items()
    }
    return why if _missing("cpu", typed, wider) else None


def _missing(
    provider: str, typed: TypedNode, types: Mapping[str, frozenset[str]] | None = None
) -> str | None:
    given = typed.types if types is None else types
    why = kernels.missing(provider, typed.domain, typed.node.op_type, typed.since, given)
    if why is None and typed.operator == "com.microsoft::MatMulNBits":
        settings = {entry.name: entry.i for entry in typed.node.attribute}
        return kernels.missing_bits(provider, settings.get("bits", 4), settings["block_size"])
    return why


def _in_tensorrt(typed: TypedNode) -> str | None:
    taken = kernels.tensorrt(typed.domain, typed.node.op_type)
    if taken is None:
        return "TensorRT's ONNX parser does not take it"
    types = frozenset(taken["types"].split())
    if typed.domain == "" and not typed.values <= types | SHAPE_TYPES:
        wrong = sorted(typed.values - types - SHAPE_TYPES)
        return f"TensorRT's ONNX parser does not take it with {' and '.join(wrong)}"
    outputs = [name for name in typed.node.output if name]
    if len(outputs) > taken.get("outputs", len(outputs)):
        return f"TensorRT's ONNX parser gives {taken['outputs']} of its {len(outputs)} outputs"
    given = dict(enumerate(typed.node.input))
    for place in taken.get("constant", ()):
        if given.get(place) and given[place] not in typed.constants:
            return f"TensorRT's ONNX parser wants its input {place} as a constant"
    zero_point = typed.constants.get(given.get(taken.get("zero_point", -1), ""))
    if zero_point is not None and not _is_zero(zero_point):
        return "TensorRT quantizes symmetrically, its zero point is not zero"
    return None


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _is_zero(tensor: TensorProto) -> bool:
    """Whether all values of a constant are zero; one that lies outside the graph is not read, and is not."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    return not np.any(numpy_helper.to_array(tensor).astype(np.int32))
