"""A traced decoder's attention in the nodes that it takes, once weights have their names.

    q -> Reshape -> Transpose -> 12 nodes of rotation -> Transpose -> 4 nodes -> Reshape -> attention
    q -> RotaryEmbedding -> attention

Decoding a token calls each node once, and a node costs microseconds whatever it computes: 50 nodes of shapes
a layer are a large part of a quantized model's time. The operator's table of angles is not one of positions:
its rows are the angles that the graph computes for this run, row by row, so that positions of three
dimensions stay what they are. What looks otherwise is left alone: normed queries, partial rotation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

ATTENTION, ROTARY, DOMAIN = "GroupQueryAttention", "RotaryEmbedding", "com.microsoft"
_HEADS_FIRST = [0, 2, 1, 3]
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """x_BSN, heads side by side, rotated by angles [B, 1, S, C]."""

    x: str
    cos: str
    sin: str
    half: int
    """C / 2."""


def simplify_attention(graph: GraphProto, shapes: Mapping[str, Sequence[int]]) -> int:
    """Rewrite what stands around each attention; returns how many were rewritten.

    Args:
        graph: a traced one; its weights may be names alone.
        shapes: of weights that are not in the graph yet.
    """
    if not any(node.op_type == ATTENTION for node in graph.node):
        return 0
    nodes = _without_equals(list(graph.node), graph)
    pattern = _Pattern(graph, nodes, shapes)
    tables: dict[tuple[str, str], list[str]] = {}
    before: dict[str, list[NodeProto]] = defaultdict(list)
    done = 0
    for attention in [node for node in nodes if node.op_type == ATTENTION]:
        heads = {one.name: one.i for one in attention.attribute}
        q = pattern.rotation(attention.input[0], heads["num_heads"])
        k = pattern.rotation(attention.input[1], heads["kv_num_heads"])
        v = pattern.product(attention.input[2])
        if q is None or k is None or v is None:
            continue
        for product in pattern.products_behind(attention.output[0], width=2 * q.half * heads["num_heads"]):
            product.input[0] = attention.output[0]
        new = before[attention.output[0]]
        for place, one in enumerate((q, k)):
            if (one.cos, one.sin) not in tables:
                angles, tables[one.cos, one.sin] = _table(one, f"rotary_{len(tables)}", graph)
                new += angles
            name = f"{attention.name or attention.output[0]}/{'qk'[place]}_rotated"
            table = tables[one.cos, one.sin]
            new.append(helper.make_node(ROTARY, [one.x, *table], [name], name=name, domain=DOMAIN))
            attention.input[place] = name
        attention.input[2] = v
        done += 1
    whole = [one for node in nodes for one in (*before.get(node.output[0], ()), node)]
    _keep(graph, _read(whole, graph))
    return done


class _Pattern:
    """Who writes and who reads each value, and whether it looks as the exporter writes it."""

    def __init__(
        self, graph: GraphProto, nodes: list[NodeProto], shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._shapes = {**{name: value.shape for name, value in self._constants.items()}, **shapes}
        self._writer = {name: node for node in nodes for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in nodes:
            for name in node.input:
                self._readers[name].append(node)

    def rotation(self, name: str, heads: int) -> Rotation | None:
        """What an input of the attention is a rotation of: x * cos + (-x_2, x_1) * sin, x = (x_1, x_2)."""
        turned = self._through(name, "Reshape", "Transpose")
        added = self._by(turned, "Add")
        parts = [self._by(part, "Mul") for part in added.input] if added else []
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            return None
        x, cos = parts[0].input
        joined = self._by(parts[1].input[0], "Concat")
        sin = parts[1].input[1]
        if joined is None or len(joined.input) != 2:
            return None
        negated = self._by(joined.input[0], "Neg")
        second = self._by(negated.input[0], "Slice") if negated else None
        first = self._by(joined.input[1], "Slice")
        if first is None or second is None or first.input[0] != x or second.input[0] != x:
            return None
        # Both halves end and begin at one computed place; equal nodes are one already.
        middle, starts, ends = first.input[2], self._number(first.input[1]), self._number(second.input[2])
        if starts != 0 or ends != _TO_THE_END or second.input[1] != middle:
            return None
        source = self.product(self._through(x, "Transpose", "Reshape"))
        width = self._width(source)
        if source is None or width is None or width % (2 * heads):
            return None
        return Rotation(x=source, cos=cos, sin=sin, half=width // (2 * heads))

    def product(self, name: str) -> str | None:
        """The product [B, S, N] behind reshapes that join or part its last axis; None where it is none."""
        while (node := self._by(name, "Reshape")) is not None:
            name = node.input[0]
        return name if self._width(name) is not None else None

    def products_behind(self, name: str, *, width: int) -> list[NodeProto]:
        """Products that read a value [B, S, width] through reshapes. As the weight takes rows of `width`,
        these change nothing."""
        found, names = [], [name]
        while names:
            for node in self._readers[names.pop()]:
                if node.op_type == "Reshape":
                    names.append(node.output[0])
                elif node.op_type == "MatMul" and tuple(self._shapes.get(node.input[1], ()))[:1] == (width,):
                    found.append(node)
        return found

    def _width(self, name: str | None) -> int | None:
        """N of a product with a weight [K, N], a bias added or not."""
        node = self._writer.get(name or "")
        if node is not None and node.op_type == "Add":
            products = [one for one in map(self._writer.get, node.input) if one and one.op_type == "MatMul"]
            biases = [one for one in node.input if len(self._shapes.get(one, ())) == 1]
            node = products[0] if len(products) == len(biases) == 1 else None
        if node is None or node.op_type != "MatMul":
            return None
        shape = self._shapes.get(node.input[1], ())
        return shape[1] if len(shape) == 2 else None

    def _by(self, name: str, kind: str) -> NodeProto | None:
        """The node that writes a value, if it is of this kind."""
        node = self._writer.get(name)
        return node if node is not None and node.op_type == kind else None

    def _through(self, name: str, *kinds: str) -> str:
        """What a chain of these nodes, the last one first, begins with; no value where it is another one."""
        for kind in kinds:
            node = self._by(name, kind)
            if node is None or (kind == "Transpose" and list(node.attribute[0].ints) != _HEADS_FIRST):
                return ""
            name = node.input[0]
        return name

    def _number(self, name: str) -> int | None:
        value = self._constants.get(name)
        return int(value.item()) if value is not None and value.size == 1 else None


def _table(rotation: Rotation, name: str, graph: GraphProto) -> tuple[list[NodeProto], list[str]]:
    """Nodes that make the inputs rows_BS, cos and sin [B * S, C / 2] of angles [B, 1, S, C]."""
    constants = {"zero": 0, "one": 1, "start": [0], "half": [rotation.half], "axis": [3]}
    constants["flat"] = [-1, rotation.half]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"{name}/{key}")
        for key, value in constants.items()
    )
    nodes: list[NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        full = f"{name}/{output}"
        nodes.append(helper.make_node(kind, inputs, [full], name=full, **attributes))
        return full

    zero, one, start, half, axis, flat = (f"{name}/{key}" for key in constants)
    # The two halves of the angles are equal.
    cos, sin = (
        add("Reshape", [add("Slice", [angles, start, half, axis], f"{part}_half"), flat], part)
        for part, angles in (("cos", rotation.cos), ("sin", rotation.sin))
    )
    count = add("Gather", [add("Shape", [cos], "cos_shape"), zero], "count", axis=0)
    sizes = add("Shape", [rotation.x], "sizes", start=0, end=2)
    rows = add("Reshape", [add("Range", [zero, count, one], "range"), sizes], "rows")
    return nodes, [rows, cos, sin]


def _without_equals(nodes: list[NodeProto], graph: GraphProto) -> list[NodeProto]:
    """The nodes without those that compute what an earlier one does; constants of one value are one."""
    same: dict[str, str] = {}
    values: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        same[tensor.name] = values.setdefault((str(array.dtype), array.shape, array.tobytes()), tensor.name)
    outputs = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    known: dict[tuple[object, ...], NodeProto] = {}
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        attributes = tuple(sorted(one.SerializeToString(deterministic=True) for one in node.attribute))
        key = (node.op_type, node.domain, tuple(node.input), attributes, len(node.output))
        first = known.setdefault(key, node)
        if first is node or node.op_type.startswith("Random") or outputs & set(node.output):
            kept.append(node)
        else:
            same.update(zip(node.output, first.output, strict=True))
    return kept


def _read(nodes: list[NodeProto], graph: GraphProto) -> list[NodeProto]:
    """The nodes that an output of the graph depends on."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _keep(graph: GraphProto, nodes: list[NodeProto]) -> None:
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
