"""What all of our Optimum configs have in common: one of them says how one graph is traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import NormalizedConfig


class GraphConfig(OnnxConfig):
    """Names and dynamic axes of a graph's inputs and outputs, and inputs to trace it with.

    Subclasses give `inputs`, `outputs` and `generate_dummy_inputs`; no size of the latter may pass for a
    constant of the model.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def sizes(self) -> dict[str, dict[int, int]]:
        """Output -> the axes whose size is fixed; the tracer does not always find them."""
        return {}

    def fix_dynamic_axes(self, model_path: Path, **_: Any) -> None:
        """Optimum runs the traced graph here to find fixed axes; `sizes` names them, and nothing is run."""
