"""What a precision means on a target, graph by graph: the table that the exporter works by.

    cpu               8 or 4 bits a weight in MatMulNBits; activations are quantized to int8 by the kernel;
                      vision, where rows are many: 7 bits and one scale for all activations of a product
    jetson            the same weights with float16 activations, which CUDA multiplies; vision in float16
    jetson-tensorrt   vision: int8 weights and activations with scales that are fixed beforehand (QDQ), for
                      TensorRT's own int8; the language model as jetson

The embedding is read a row at a time, so it has 8 bits and one scale a row wherever weights are quantized.
Blocks: one scale for so many input channels. A scale has the type of the activations, so 64 of float32 cost
as much as 32 of float16, half a bit a weight. docs/quantization.md says what was measured for each choice.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from edge import build as layout
from genrecal.core.errors import BuildError

HEAD = r"(^|\.)(lm_head|embed_tokens)\.weight"
PATCHES = r"patch_embed"
# A block is halved down to this where it does not divide a weight's input channels.
SMALLEST_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Higher:
    """Weights that keep more bits than their graph's."""

    pattern: str
    """Searched in the weight's name."""
    bits: int | None
    """None: they stay as they are."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """MatMulNBits: weights of matrix products in blocks along the input channels, symmetric."""

    bits: int
    block: int
    accuracy_level: int
    """4: the kernel quantizes activations to int8, a scale a block; 0: in the type of the activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """DynamicQuantizeMatMul: weights in int8, a scale an output channel, symmetric; activations in uint8.

    The kernel finds the one scale and zero point of a product's activations when it runs. 7 bits of the 8:
    without VNNI an x86 CPU adds two products of a byte and a weight in 16 bits, and 2 * 255 * 64 fits there.
    """

    bits: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Tables: int8 with one scale a row, which is taken from the table with the row."""

    bits: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """QuantizeLinear and DequantizeLinear around matrix products: int8, symmetric.

    Weights have a scale an output channel, activations one a tensor, from calibration.
    """

    bits: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScheme:
    """What is done to one graph."""

    name: str
    """As the papers write it: bits of the weights, bits of the activations."""
    computes_in: str
    """fp32 or fp16, what the graph is traced in."""
    suffix: str
    """Of its file, as the ONNX community names it."""
    provider: str
    """Of ONNX Runtime, that it is made for."""
    weights: Blocks | Dynamic | Rows | Static | None = None
    higher: tuple[Higher, ...] = ()

    def bits_of(self, weight: str) -> int | None:
        """Bits of a weight; None where it stays as it is."""
        rule = self.rule_of(weight)
        if rule is not None:
            return rule.bits
        return None if self.weights is None else self.weights.bits

    def rule_of(self, weight: str) -> Higher | None:
        return next((rule for rule in self.higher if re.search(rule.pattern, weight)), None)


Scheme = dict[str, GraphScheme]

_PATCHES = Higher(
    pattern=PATCHES, bits=None, why="patch embedding: every patch passes it first, and it is small"
)
_HEAD = Higher(pattern=HEAD, bits=8, why="head: its errors are the logits' own")


def _plain(graph: str, precision: str, provider: str) -> GraphScheme:
    suffix = "" if precision == "fp32" else "_fp16"
    name = "w32a32" if precision == "fp32" else "w16a16"
    return GraphScheme(name=name, computes_in=precision, suffix=suffix, provider=provider)


def _all(precision: str, provider: str) -> Scheme:
    return {graph: _plain(graph, precision, provider) for graph in layout.GRAPHS}


def _table(provider: str) -> GraphScheme:
    return GraphScheme(
        name="w8a32", computes_in="fp32", suffix="_int8", provider=provider, weights=Rows(bits=8)
    )


_CPU_8 = Blocks(bits=8, block=64, accuracy_level=4)
_CPU_4 = Blocks(bits=4, block=64, accuracy_level=4)
_CPU_VISION = GraphScheme(
    name="w8a8",
    computes_in="fp32",
    suffix="_int8",
    provider="CPU",
    weights=Dynamic(bits=7),
    higher=(_PATCHES,),
)
_CPU_INT8: Scheme = {
    layout.VISION_ENCODER: _CPU_VISION,
    layout.EMBED_TOKENS: _table("CPU"),
    layout.DECODER: GraphScheme(
        name="w8a8", computes_in="fp32", suffix="_int8", provider="CPU", weights=_CPU_8
    ),
}
_CPU_INT4: Scheme = {
    **_CPU_INT8,
    layout.DECODER: GraphScheme(
        name="w4a8", computes_in="fp32", suffix="_q4", provider="CPU", weights=_CPU_4, higher=(_HEAD,)
    ),
}
_JETSON_INT8: Scheme = {
    layout.VISION_ENCODER: _plain(layout.VISION_ENCODER, "fp16", "CUDA"),
    layout.EMBED_TOKENS: _table("CUDA"),
    layout.DECODER: GraphScheme(
        name="w8a16",
        computes_in="fp16",
        suffix="_int8",
        provider="CUDA",
        weights=Blocks(bits=8, block=32, accuracy_level=0),
    ),
}
_JETSON_INT4: Scheme = {
    **_JETSON_INT8,
    layout.DECODER: GraphScheme(
        name="w4a16",
        computes_in="fp16",
        suffix="_q4f16",
        provider="CUDA",
        weights=Blocks(bits=4, block=32, accuracy_level=0),
        higher=(_HEAD,),
    ),
}
# TensorRT takes float32 around QDQ and chooses float16 for the rest itself.
_TENSORRT_VISION = GraphScheme(
    name="w8a8 static",
    computes_in="fp32",
    suffix="_int8",
    provider="TensorRT",
    weights=Static(bits=8),
    higher=(_PATCHES,),
)
# target -> precision -> graph -> what is done to it
SCHEMES: dict[str, dict[str, Scheme]] = {
    "cpu": {
        "fp32": _all("fp32", "CPU"),
        "fp16": _all("fp16", "CPU"),
        "int8": _CPU_INT8,
        "int4": _CPU_INT4,
    },
    "jetson": {
        "fp32": _all("fp32", "CUDA"),
        "fp16": _all("fp16", "CUDA"),
        "int8": _JETSON_INT8,
        "int4": _JETSON_INT4,
    },
    "jetson-tensorrt": {
        "fp32": _all("fp32", "CUDA"),
        "fp16": {
            **_all("fp16", "CUDA"),
            layout.VISION_ENCODER: _plain(layout.VISION_ENCODER, "fp16", "TensorRT"),
        },
        "int8": {**_JETSON_INT8, layout.VISION_ENCODER: _TENSORRT_VISION},
        "int4": {**_JETSON_INT4, layout.VISION_ENCODER: _TENSORRT_VISION},
    },
}
# What stays as it is in every graph, whatever its scheme.
UNTOUCHED = "norms, biases, rotary positions, convolutions, attention between activations, softmax"


def scheme_of(precision: str, target: str) -> Scheme:
    """Graph -> what is done to it.

    Raises:
        BuildError: no such target or precision.
    """
    if target not in SCHEMES:
        raise BuildError(f"unknown target '{target}'", fix=f"Known: {', '.join(SCHEMES)}")
    if precision not in SCHEMES[target]:
        raise BuildError(f"unknown precision '{precision}'", fix=f"Known: {', '.join(SCHEMES[target])}")
    return SCHEMES[target][precision]


def needs_float16(scheme: Scheme) -> bool:
    """Whether a graph computes in float16."""
    return any(of_graph.computes_in == "fp16" for of_graph in scheme.values())


def is_calibrated(scheme: Scheme) -> bool:
    """Whether prompts make a graph better, or it needs them: fixed scales of activations, and 4 bits."""
    weights = [of_graph.weights for of_graph in scheme.values()]
    return any(
        isinstance(of_graph, Static) or (isinstance(of_graph, Blocks) and of_graph.bits < 8)
        for of_graph in weights
    )


def files_of(scheme: Scheme) -> dict[str, str]:
    """Graph -> its file inside a build."""
    return {graph: layout.graph_file(graph, of_graph.suffix) for graph, of_graph in scheme.items()}


def described(scheme: GraphScheme) -> dict[str, Any]:
    """What is done to a graph, for the manifest."""
    float_type = {"fp32": "float32", "fp16": "float16"}[scheme.computes_in]
    facts: dict[str, Any] = {"scheme": scheme.name, "execution_provider": scheme.provider}
    if scheme.weights is None:
        return {**facts, "weights": float_type, "activations": float_type}
    return {
        **facts,
        **_OPERATORS[type(scheme.weights)](scheme.weights, float_type),
        "untouched": f"{UNTOUCHED}: {float_type}",
        **({"higher": [asdict(rule) for rule in scheme.higher]} if scheme.higher else {}),
    }


def _blocks(weights: Any, float_type: str) -> dict[str, Any]:
    half = 1 << (weights.bits - 1)
    level = weights.accuracy_level
    inside = f", int8 inside the kernel, a scale for {weights.block} of them" if level == 4 else ""
    return {
        "operator": "com.microsoft.MatMulNBits",
        "bits": weights.bits,
        "block": weights.block,
        "smallest_block": SMALLEST_BLOCK,
        "accuracy_level": level,
        "range": [-half, half - 1],
        "symmetric": True,
        "scales": f"{float_type}, one for each block of input channels of each output channel",
        "activations": f"{float_type}{inside}",
    }


def _dynamic(weights: Any, float_type: str) -> dict[str, Any]:
    largest = 1 << (weights.bits - 1)
    return {
        "operator": "com.microsoft.DynamicQuantizeMatMul",
        "bits": weights.bits,
        "range": [-largest, largest],
        "symmetric": True,
        "scales": f"{float_type}, one for each output channel",
        "activations": f"{float_type}, uint8 inside the kernel, one scale and zero point a product",
    }


def _rows(weights: Any, float_type: str) -> dict[str, Any]:
    return {
        "operator": "Gather, Mul",
        "bits": weights.bits,
        "range": [-127, 127],
        "symmetric": True,
        "scales": f"{float_type}, one for each token",
        "activations": float_type,
    }


def _static(weights: Any, float_type: str) -> dict[str, Any]:
    return {
        "operator": "QuantizeLinear, DequantizeLinear, MatMul",
        "bits": weights.bits,
        "range": [-127, 127],
        "symmetric": True,
        "scales": f"{float_type}, one for each output channel",
        "activations": "int8, symmetric, one scale a tensor, from calibration",
    }


_OPERATORS = {Blocks: _blocks, Dynamic: _dynamic, Rows: _rows, Static: _static}
