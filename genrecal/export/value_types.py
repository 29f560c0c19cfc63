"""The nodes of a graph with the type of every value, from its metadata alone.

onnx.shape_inference stops at the first operator of ONNX Runtime's own, and our graphs have one in every
layer. Here a node's outputs get their types from the type parameters of its inputs, for ONNX's operators by
the schemas of the onnx package, for ONNX Runtime's by `signatures` in kernels.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from genrecal.export.kernels import tables

UNKNOWN = "?"
_ONNX = ("", "ai.onnx")
_NAMES = {value: name.lower() for name, value in TensorProto.DataType.items()}
# Attributes that name the type of an output which no input has.
_TYPED_BY = ("to", "dtype", "output_dtype")
_LITERALS = {"value_float": "float", "value_floats": "float", "value_int": "int64", "value_ints": "int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedNode:
    """A node, the version of its operator, and its types as ONNX Runtime names them: float, int64 ..."""

    node: NodeProto
    domain: str
    since: int
    """The opset that last changed the operator, of those that the graph may use."""
    types: Mapping[str, frozenset[str]]
    """Type parameter, and name of an input, -> types there."""
    inputs: tuple[str, ...]
    """Of those that the node has; optional ones may be missing."""
    outputs: tuple[str, ...]
    constants: Mapping[str, TensorProto]
    """Initializers of the graph and of those around it."""

    @property
    def operator(self) -> str:
        return f"{self.domain}::{self.node.op_type}" if self.domain else self.node.op_type

    @property
    def values(self) -> frozenset[str]:
        """The types of all that goes in and comes out."""
        return frozenset((*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signature:
    since: int
    inputs: Sequence[tuple[str, str]]
    """Name and type parameter of each; the last one stands for all that follow."""
    outputs: Sequence[str]


def typed_nodes(model: ModelProto) -> Iterator[TypedNode]:
    """Every node of a model, those of its subgraphs too, in the order in which they run."""
    opsets = {"" if entry.domain in _ONNX else entry.domain: entry.version for entry in model.opset_import}
    yield from _walk(model.graph, opsets, {}, {})


def _walk(
    graph: GraphProto, opsets: Mapping[str, int], outer: dict[str, str], constants: dict[str, TensorProto]
) -> Iterator[TypedNode]:
    types = {**outer, **_declared(graph)}
    constants = {**constants, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        subgraphs = [entry.g for entry in node.attribute if entry.type == AttributeProto.GRAPH]
        for subgraph in subgraphs:
            yield from _walk(subgraph, opsets, types, constants)
        typed = _typed(node, opsets, types, constants, subgraphs)
        types.update(zip(filter(None, node.output), typed.outputs, strict=True))
        yield typed


def _declared(graph: GraphProto) -> dict[str, str]:
    entries = (*graph.input, *graph.output, *graph.value_info)
    found = {
        entry.name: _NAMES[entry.type.tensor_type.elem_type]
        for entry in entries
        if entry.type.tensor_type.elem_type
    }
    return {**found, **{tensor.name: _NAMES[tensor.data_type] for tensor in graph.initializer}}


def _typed(
    node: NodeProto,
    opsets: Mapping[str, int],
    types: Mapping[str, str],
    constants: dict[str, TensorProto],
    subgraphs: Sequence[GraphProto],
) -> TypedNode:
    domain = "" if node.domain in _ONNX else node.domain
    signature = _signature(domain, node.op_type, opsets.get(domain, 1))
    inputs = tuple(types.get(name, UNKNOWN) for name in node.input if name)
    bound: dict[str, set[str]] = {}
    for place, name in enumerate(node.input):
        if name and signature.inputs:
            formal, parameter = signature.inputs[min(place, len(signature.inputs) - 1)]
            for key in (formal, parameter):
                bound.setdefault(key, set()).add(types.get(name, UNKNOWN))
    outputs = []
    for place, name in enumerate(node.output):
        if not name:
            continue
        parameter = (
            signature.outputs[min(place, len(signature.outputs) - 1)] if signature.outputs else UNKNOWN
        )
        found = types.get(name) or _output_type(node, parameter, bound, place, subgraphs)
        outputs.append(found)
        bound.setdefault(parameter, set()).add(found)
    return TypedNode(
        node=node,
        domain=domain,
        since=signature.since,
        types={name: frozenset(found) for name, found in bound.items()},
        inputs=inputs,
        outputs=tuple(outputs),
        constants=constants,
    )


def _signature(domain: str, operator: str, opset: int) -> _Signature:
    if onnx.defs.has(operator, max_inclusive_version=opset, domain=domain):
        schema = onnx.defs.get_schema(operator, max_inclusive_version=opset, domain=domain)
        # Of Shape's T1 and the like there is one: what it names is known without any input.
        single = {
            entry.type_param_str: entry.allowed_type_strs[0]
            for entry in schema.type_constraints
            if len(entry.allowed_type_strs) == 1
        }
        return _Signature(
            since=schema.since_version,
            inputs=[(entry.name, entry.type_str) for entry in schema.inputs],
            outputs=[single.get(entry.type_str, entry.type_str) for entry in schema.outputs],
        )
    known = tables()["signatures"].get(domain or "ai.onnx", {}).get(operator, {"inputs": "", "outputs": ""})
    return _Signature(
        since=1,
        inputs=[(parameter, parameter) for parameter in known["inputs"].split()],
        outputs=known["outputs"].split(),
    )


def _output_type(
    node: NodeProto,
    parameter: str,
    bound: Mapping[str, set[str]],
    place: int,
    subgraphs: Sequence[GraphProto],
) -> str:
    if subgraphs:
        # If gives what its branches give; Loop and Scan give the last ones of their bodies.
        results = subgraphs[0].output[len(subgraphs[0].output) - len(node.output) :]
        return _NAMES.get(results[place].type.tensor_type.elem_type, UNKNOWN)
    if parameter.startswith("tensor("):
        return parameter[len("tensor(") : -1]
    attributes: dict[str, Any] = {entry.name: entry for entry in node.attribute}
    for name in _TYPED_BY:
        if name in attributes and attributes[name].i:
            return _NAMES.get(attributes[name].i, UNKNOWN)
    if node.op_type in ("Constant", "ConstantOfShape"):
        if "value" in attributes:
            return _NAMES[attributes["value"].t.data_type]
        return next((found for name, found in _LITERALS.items() if name in attributes), "float")
    found = bound.get(parameter, set())
    if len(found) == 1:
        return next(iter(found))
    # QuantizeLinear without a zero point.
    return "uint8" if node.op_type == "QuantizeLinear" and not found else UNKNOWN
