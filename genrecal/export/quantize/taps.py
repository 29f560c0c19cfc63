"""What flows inside a graph while it runs: values that are no outputs, for calibration.

graph -> the nodes that the asked values need, no others -> session beside the graph's weights
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto, ValueInfoProto

from genrecal.export.graph_parity import open_graph


@contextmanager
def tapped(source: Path, values: Sequence[str]) -> Iterator[onnxruntime.InferenceSession]:
    """A session of the graph `source` whose outputs are `values`, and no node that they do not need.

    Weights stay in the file that they are mapped from.
    """
    model = onnx.load(source, load_external_data=False)
    prune(model, values)
    path = source.with_name(f".{source.stem}.taps.onnx")
    onnx.save_model(model, path)
    try:
        yield open_graph(path)
    finally:
        path.unlink()


def activations(model: ModelProto) -> dict[str, str]:
    """Weight of a matrix product -> the value that it is multiplied with."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.input[1]: node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }


def prune(model: ModelProto, values: Sequence[str]) -> None:
    """Make `values` the graph's outputs, and drop what they do not need."""
    graph = model.graph
    needed, nodes = set(values), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input) | _read_inside(node)
            nodes.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    given = [entry for entry in graph.input if entry.name in needed]
    for field, kept in (("node", nodes[::-1]), ("initializer", initializers), ("input", given)):
        kept = [_copy(entry) for entry in kept]
        del getattr(graph, field)[:]
        getattr(graph, field).extend(kept)
    del graph.output[:]
    # Without a type: ONNX Runtime infers it.
    graph.output.extend(ValueInfoProto(name=name) for name in values)


def _copy(entry: object) -> object:
    copied = type(entry)()
    copied.CopyFrom(entry)  # type: ignore[attr-defined]
    return copied


def _read_inside(node: onnx.NodeProto) -> set[str]:
    """What the bodies of a node read from the graph around them."""
    bodies = [entry.g for entry in node.attribute if entry.HasField("g")]
    return {name for body in bodies for inner in body.node for name in {*inner.input, *_read_inside(inner)}}
