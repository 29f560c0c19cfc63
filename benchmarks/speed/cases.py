"""Which engines are measured, with what work, and where their files lie.

WORK/student        Qwen2-VL-2B's sizes, random bf16 weights: torch and `genrecal export` read it
WORK/language       its language model alone as a Qwen2: the other two engines' converters read it
WORK/build-int8, WORK/build-int4, WORK/genai-int8, WORK/genai-int4,
WORK/genai-int4-head8, WORK/gguf/*.gguf
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrecal.core.errors import BenchError

RESULT = Path(__file__).parents[1] / "results" / "speed.json"
CONFIG = Path(__file__).parents[2] / "configs/paper/models/Qwen2-VL-2B-Instruct"

PROMPT_TOKENS, NEW_TOKENS, WARM_TOKENS = 64, 32, 4
PREFILL_TOKENS = 512
IMAGE_PIXELS = 448  # on a side: 1,024 patches, 256 image tokens
ROUNDS = 3

# Goals of docs/performance.md.
ROOFLINE_GOAL = 0.7
RIVAL_GOALS = {"genai": 1.0, "llama": 0.9}
TORCH_GOAL = 1.0

# For this measurement alone; the project does not depend on them. `--packages` names their folder.
PACKAGES = (
    "onnxruntime_genai==0.18.0",
    "llama_cpp_python==0.3.36",
    "gguf==0.19.0",
    "diskcache==5.6.3",
    # Its model builder needs newer ones than the project has; nothing else here imports these two.
    "transformers==5.12.0",
    "huggingface_hub==1.27.0",
)
INSTALL = f"pip install --no-deps --target PACKAGES {' '.join(PACKAGES)}"

Kind = Literal["edge", "torch", "genai", "llama"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An engine with its weights."""

    kind: Kind
    file: str
    """Below WORK."""
    precision: str

    @property
    def reads_images(self) -> bool:
        """Whether prefill and the vision encoder are measured: of our builds, and of what they replace."""
        return self.kind == "edge" or self.precision == "fp32"


CASES: dict[str, Case] = {
    "genrecal int8": Case(kind="edge", file="build-int8", precision="int8"),
    "genrecal int4": Case(kind="edge", file="build-int4", precision="int4"),
    "onnxruntime-genai int8": Case(kind="genai", file="genai-int8", precision="int8"),
    "onnxruntime-genai int4": Case(kind="genai", file="genai-int4", precision="int4"),
    # As ours: with its defaults the head, a seventh of the weights, has 4 bits as well.
    "onnxruntime-genai int4, head int8": Case(kind="genai", file="genai-int4-head8", precision="int4"),
    "llama.cpp Q8_0": Case(kind="llama", file="gguf/q8_0.gguf", precision="int8"),
    "llama.cpp Q4_0": Case(kind="llama", file="gguf/q4_0.gguf", precision="int4"),
    "torch bf16": Case(kind="torch", file="student", precision="bf16"),
    "torch fp32": Case(kind="torch", file="student", precision="fp32"),
}


def take_packages(folder: Path | None) -> None:
    """Make the packages of this measurement importable in this process, behind the project's own.

    Raises:
        BenchError: they are not there.
    """
    if folder is None or not folder.is_dir():
        raise BenchError("needs packages that the project does not", where=folder, fix=INSTALL)
    sys.path.append(str(folder.resolve()))
