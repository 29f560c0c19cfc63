"""From a traced graph with stand-ins to a graph with weights, which go from disk to disk one at a time.

    Expand(number)                    -> the weight on disk
    Transpose, Reshape ... of it      -> the weight, reshaped while it is written
    nodes of constants alone          -> constants

So a linear layer's weight lies in the file as the MatMul takes it, and no runtime computes on weights when it
loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from genrecal.core.errors import BuildError
from genrecal.export import initializers
from genrecal.export.attention_nodes import simplify_attention
from genrecal.export.initializers import written
from genrecal.export.weights import CheckpointWeights

# Constants that are folded stay below this: a table that a node draws is not stored.
FOLDED_BYTES = 1 << 16
RESHAPING = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast")
_TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A weight on disk, and what is done to its axes on the way."""

    source: str
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """("Transpose", permutation) or ("Reshape", shape)."""

    @property
    def name(self) -> str:
        return "/".join((self.source, *(f"{kind}_{'_'.join(map(str, axes))}" for kind, axes in self.steps)))

    def apply(self, tensor: Tensor) -> Tensor:
        """A view of the tensor wherever there can be one."""
        for kind, axes in self.steps:
            tensor = tensor.permute(axes) if kind == "Transpose" else tensor.reshape(axes)
        return tensor


def stitch(
    traced: Path,
    target: Path,
    *,
    names: dict[str, str],
    weights: CheckpointWeights,
    dtype: torch.dtype,
    sizes: dict[str, dict[int, int]],
) -> None:
    """Write the graph that `traced` holds, with weights, to `target`.

    Args:
        traced: what the exporter wrote of a skeleton.
        target: the `.onnx` file; weights that lie beside it go to `<target>_data`.
        names: initializer of `traced` -> the weight that it stands for.
        weights: where they are read.
        dtype: torch.float32 or torch.float16, what they are written as.
        sizes: output -> fixed axes.

    Raises:
        BuildError: a weight is not a finite number in `dtype`.
    """
    model = onnx.load(traced)
    found = _fold(model, names, weights)
    _fix_sizes(model, sizes)
    shapes = {weight.name: _shape(weight, weights) for weight in found.values()}
    simplify_attention(model.graph, shapes)
    total = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
    with written(model, target, outside=total > initializers.INLINE_BYTES) as constants:
        for weight in {weight.name: weight for weight in found.values()}.values():
            constants.add(weight.name, shapes[weight.name], _TYPES[dtype], _pieces(weight, weights, dtype))


def _fold(model: ModelProto, names: dict[str, str], weights: CheckpointWeights) -> dict[str, Weight]:
    """Take stand-ins and constants out of the graph; returns the weights by the names that nodes read."""
    graph = model.graph
    constants: dict[str, np.ndarray] = {}
    found: dict[str, Weight] = {}
    stand_ins: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in names:
            stand_ins.add(tensor.name)
        else:
            constants[tensor.name] = numpy_helper.to_array(tensor)
    kept: list[NodeProto] = []
    for node in graph.node:
        read = [name for name in node.input if name]
        if node.op_type == "Expand" and read[0] in stand_ins:
            found[node.output[0]] = Weight(source=names[read[0]])
        elif read and read[0] in found and node.op_type in RESHAPING and set(read[1:]) <= set(constants):
            found[node.output[0]] = _reshaped(found[read[0]], node, constants, weights)
        elif (values := _constant(model, node, constants)) is not None:
            constants |= values
        else:
            kept.append(node)
    # Tied and shared weights have one name, whoever reads them.
    for node in kept:
        for place, name in enumerate(node.input):
            if name in found:
                node.input[place] = found[name].name
    used = {name for node in kept for name in node.input} | {output.name for output in graph.output}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
    return {name: weight for name, weight in found.items() if weight.name in used}


def _constant(
    model: ModelProto, node: NodeProto, constants: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """The node's outputs where all of its inputs are constants and small; None where it stays."""
    read = [name for name in node.input if name]
    if node.domain or node.op_type in _RANDOM or not set(read) <= set(constants):
        return None
    if any(attribute.HasField("g") for attribute in node.attribute):
        return None
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in dict.fromkeys(read)
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    alone = helper.make_model(
        helper.make_graph([node], "constant", inputs, outputs),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    values = ReferenceEvaluator(alone).run(None, {name: constants[name] for name in read})
    arrays = [np.asarray(value) for value in values]
    if any(array.nbytes > FOLDED_BYTES for array in arrays) and node.op_type != "Constant":
        return None
    return dict(zip(node.output, arrays, strict=True))


def _reshaped(
    weight: Weight, node: NodeProto, constants: dict[str, np.ndarray], weights: CheckpointWeights
) -> Weight:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    before = _shape(weight, weights)
    if node.op_type == "Transpose":
        axes = tuple(attributes.get("perm", reversed(range(len(before)))))
        # Twice the same transposition is none.
        if weight.steps[-1:] == (("Transpose", axes),) and [axes[axis] for axis in axes] == sorted(axes):
            return Weight(source=weight.source, steps=weight.steps[:-1])
        return Weight(source=weight.source, steps=(*weight.steps, ("Transpose", axes)))
    if node.op_type in ("Identity", "Cast"):
        return weight  # all weights are written in the type that the graph computes in
    arguments = [constants[name].tolist() for name in node.input[1:] if name]
    empty = torch.empty(before, device="meta")
    if node.op_type == "Reshape":
        sizes = [before[axis] if size == 0 else size for axis, size in enumerate(arguments[0])]
        after = empty.reshape(sizes).shape
    elif node.op_type == "Flatten":
        axis = attributes.get("axis", 1)
        after = torch.Size((prod(before[:axis]), prod(before[axis:])))
    elif node.op_type == "Squeeze":
        after = empty.squeeze(arguments[0] if arguments else tuple(range(len(before)))).shape
    else:
        after = empty.shape
        for axis in sorted(axis % (len(before) + len(arguments[0])) for axis in arguments[0]):
            after = torch.Size((*after[:axis], 1, *after[axis:]))
    return Weight(source=weight.source, steps=(*weight.steps, ("Reshape", tuple(after))))


def _shape(weight: Weight, weights: CheckpointWeights) -> tuple[int, ...]:
    return tuple(weight.apply(torch.empty(weights.shape(weight.source), device="meta")).shape)


def _pieces(weight: Weight, weights: CheckpointWeights, dtype: torch.dtype) -> Any:
    """The weight's bytes, a few rows at a time."""
    tensor = weight.apply(weights.read(weight.source))
    rows = tensor if tensor.ndim else tensor[None]
    step = max(1, initializers.PIECE_VALUES // max(1, rows[0].numel()))
    for start in range(0, len(rows), step):
        piece = rows[start : start + step].to(dtype).contiguous()
        if not bool(torch.isfinite(piece).all()):
            raise BuildError(
                f"the weight '{weight.source}' has values that are no finite {str(dtype).split('.')[1]}",
                where=weights.folder,
                fix="Export with --fp32" if dtype == torch.float16 else "Is the checkpoint damaged?",
            )
        yield piece.numpy().tobytes()


def _fix_sizes(model: ModelProto, sizes: dict[str, dict[int, int]]) -> None:
    for output in model.graph.output:
        for axis, size in sizes.get(output.name, {}).items():
            output.type.tensor_type.shape.dim[axis].Clear()
            output.type.tensor_type.shape.dim[axis].dim_value = size
