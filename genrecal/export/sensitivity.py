"""Which weights of the decoder lose most by their quantization: each is quantized alone, the others stay.

    weight -> its codes -> the numbers that the kernel sees -> fed to the float graph in the weight's place
           -> logits on the student's own answers -> how far they are from the float graph's

A weight that is also an input of its graph can be fed anew for every run, so one session serves all weights,
and one of them is in memory at a time. What is measured: the mean Kullback-Leibler divergence of the next
token's distribution, which moves smoothly where the likeliest token does not change, and the likeliest tokens
that do change. Activations that a kernel quantizes itself are not part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from genrecal.core.errors import BuildError
from genrecal.export.graph_parity import decoder_feed, open_graph
from genrecal.export.initializers import array_of
from genrecal.export.quantize.blocks import Rounding, nearest, values_of
from genrecal.export.quantize.schemes import GraphScheme
from genrecal.export.quantize.weights import products, stored_block
from genrecal.export.reference import Reference

AUTO = "auto"
PROMPTS = 4
# Of the decoder's bytes, what `auto` may add.
KEPT_SHARE = 0.05
NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What quantizing one weight alone does."""

    weight: str
    bits: int
    divergence: float
    """Nats a token of the answers."""
    changed: int
    """Answer tokens whose likeliest token changes."""
    extra_bytes: int
    """What storing it in float16 would add."""

    @property
    def per_megabyte(self) -> float:
        return self.divergence / (self.extra_bytes / 1e6)


def measure(
    source: Path, scheme: GraphScheme, references: Sequence[Reference], *, rounding: Rounding = nearest
) -> list[Cost]:
    """The cost of each weight that the scheme quantizes, the highest first.

    Args:
        source: the decoder in the type that the scheme computes in.
        scheme: of the decoder, with `Blocks`.
        references: prompts with the student's answers; the first PROMPTS are asked.
        rounding: of weights with fewer than 8 bits, as the build has it.
    """
    asked = references[:PROMPTS]
    model = onnx.load(source, load_external_data=False)
    found = products(model)
    chosen = {name: bits for name in found if (bits := scheme.bits_of(name)) is not None}
    model.graph.input.extend(
        helper.make_tensor_value_info(name, found[name].data_type, found[name].dims) for name in chosen
    )
    path = source.with_name(f".{source.stem}.sensitivity.onnx")
    onnx.save_model(model, path)
    costs = []
    try:
        session = open_graph(path)
        expected = [_logits(session, reference, {}) for reference in asked]
        for name, bits in chosen.items():
            weight_KN = array_of(found[name], source.parent)
            inputs, outputs = weight_KN.shape
            block, kind = stored_block(scheme, inputs), weight_KN.dtype.type
            pieces = (rounding if bits < 8 else nearest)(name, weight_KN, bits, block, kind)
            values_KN = np.concatenate([values_of(coded, bits, inputs) for coded in pieces], 1).astype(kind)
            logits = [_logits(session, reference, {name: values_KN}) for reference in asked]
            stored = outputs * -(-inputs // block) * (block * bits // 8 + weight_KN.dtype.itemsize)
            divergence, changed = _apart(expected, logits)
            costs.append(
                Cost(
                    weight=public_name(name),
                    bits=bits,
                    divergence=divergence,
                    changed=changed,
                    extra_bytes=2 * inputs * outputs - stored,
                )
            )
    finally:
        path.unlink()
    return sorted(costs, key=lambda cost: -cost.divergence)


def worth_keeping(costs: Sequence[Cost], *, decoder_bytes: int) -> list[str]:
    """The weights that buy most per megabyte, as many as KEPT_SHARE of the decoder's bytes pays for."""
    kept, left = [], KEPT_SHARE * decoder_bytes
    for cost in sorted(costs, key=lambda cost: -cost.per_megabyte):
        if cost.extra_bytes <= left:
            kept.append(cost.weight)
            left -= cost.extra_bytes
    return kept


def stored_names(source: Path, names: Collection[str]) -> list[str]:
    """The graph's own names of weights that a user names as the checkpoint does.

    Raises:
        BuildError: one of them is no weight of a product.
    """
    found = {public_name(name): name for name in products(onnx.load(source, load_external_data=False))}
    for name in names:
        if name not in found:
            raise BuildError(
                f"no product of it has a weight '{name}'",
                where=source.name,
                fix=f"Names are as '{next(iter(found), '')}'; or keep what `auto` chooses",
            )
    return [found[name] for name in names]


def public_name(name: str) -> str:
    """A weight's name in the checkpoint, without what was done to its axes."""
    return name.split("/")[0]


def _logits(
    session: onnxruntime.InferenceSession, reference: Reference, weights: dict[str, NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Of the answer's tokens."""
    feed = decoder_feed(session, reference)
    feed["num_logits_to_keep"] = np.array(len(reference.logits_AV), np.int64)
    logits_AV: NDArray[np.float64] = session.run(["logits"], {**feed, **weights})[0][0].astype(np.float64)
    return logits_AV


def _apart(
    expected: Sequence[NDArray[np.float64]], found: Sequence[NDArray[np.float64]]
) -> tuple[float, int]:
    exact_AV, other_AV = (_log_softmax(np.concatenate(list(logits))) for logits in (expected, found))
    divergence_A = (np.exp(exact_AV) * (exact_AV - other_AV)).sum(1)
    return float(divergence_A.mean()), int((exact_AV.argmax(1) != other_AV.argmax(1)).sum())


def _log_softmax(logits_AV: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_AV = logits_AV - logits_AV.max(1, keepdims=True)
    log_AV: NDArray[np.float64] = shifted_AV - np.log(np.exp(shifted_AV).sum(1, keepdims=True))
    return log_AV
