"""Which kernels ONNX Runtime's providers have; the facts and their sources stand in kernels.json.

    cpu, cuda    operator -> [first opset, last or null, {type parameter: types}], as kernels are registered
    tensorrt     operator -> types that its ONNX parser takes, and limits
    signatures   type parameters of the inputs and outputs of operators that the onnx package does not define

CPU's table is of the oldest ONNX Runtime that the runtime takes, as its own registry has it; CUDA's and
TensorRT's are from their documents, and an operator that is not in them counts as missing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLES = Path(__file__).with_name("kernels.json")
# The tables have all rows of operators between these versions, and no others.
OPSETS = range(17, 23)


@functools.cache
def tables() -> dict[str, Any]:
    """kernels.json."""
    found: dict[str, Any] = json.loads(TABLES.read_text(encoding="utf-8"))
    return found


def missing(
    provider: str, domain: str, operator: str, since: int, types: Mapping[str, frozenset[str]]
) -> str | None:
    """Why a provider has no kernel for a node; None where it has one.

    Args:
        provider: cpu or cuda.
        domain: of the operator, "" for ONNX's own.
        operator: its type.
        since: the opset that last changed the operator, of those that the graph may use.
        types: type parameter, or name of an input, -> the types that the node has there.
    """
    rows = tables()[provider].get(domain or "ai.onnx", {}).get(operator)
    if rows is None:
        return f"{provider} has no kernel for it"
    # ONNX Runtime takes a kernel without a last opset for exactly the version that it names.
    rows = [row for row in rows if row[0] == since or (row[1] is not None and row[0] <= since <= row[1])]
    if not rows:
        return f"{provider} has no kernel for its version of opset {since}"
    refused: dict[str, str] = {}
    for _, _, allowed in rows:
        wrong = {
            name: names for name, names in allowed.items() if not types.get(name, set()) <= set(names.split())
        }
        if not wrong:
            return None
        refused = refused or wrong
    name, names = next(iter(refused.items()))
    return f"{provider}'s kernel takes {names} as {name}, here it is {' and '.join(sorted(types[name]))}"


def missing_bits(provider: str, bits: int, block: int) -> str | None:
    """Why a provider does not run MatMulNBits of these bits and this block; None where it does."""
    known = tables()[provider]["nbits"]
    if bits not in known["bits"]:
        return f"{provider} has no kernel for {bits} bits, it has {known['bits']}"
    if block not in known["blocks"]:
        return f"{provider} has no kernel for blocks of {block}, it has {known['blocks']}"
    return None


def tensorrt(domain: str, operator: str) -> dict[str, Any] | None:
    """What TensorRT's ONNX parser takes of an operator: `types` and limits; None where it takes nothing.

    Limits: `outputs`, the number of outputs; `constant`, inputs that must be constants; `zero_point`, the
    input that must be zero.
    """
    if domain:
        return None
    found: dict[str, Any] | None = tables()["tensorrt"]["ai.onnx"].get(operator)
    return found
