"""`import edge` costs next to nothing, and all of the runtime needs neither torch nor transformers."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 0.3
HEAVY = {"torch", "transformers", "optimum", "onnx", "safetensors", "huggingface_hub", "scipy", "sklearn"}
LIST = "import sys; import {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


def run(code: str) -> tuple[str, float]:
    """What a fresh interpreter prints, and the processor's seconds that it took.

    Elapsed time would be that of other programs on the machine, too.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("module", ["edge", "edge.model", "edge.conversation"])
def test_nothing_heavy_is_imported(module: str) -> None:
    names = set(run(LIST.format(module=module))[0].split())
    assert "edge" in names and not names & HEAVY


@pytest.mark.parametrize("code", ["import edge", "import edge; edge.EdgeModel"])
def test_the_import_takes_less_than_its_limit(code: str) -> None:
    """Against the interpreter's own start; the least of several, as other programs only ever add."""
    own = min(run("pass")[1] for _ in range(3))
    taken = min(run(code)[1] for _ in range(4)) - own
    assert taken < LIMIT_S, f"{taken:.2f} s"


def test_the_package_alone_loads_no_runtime() -> None:
    names = run("import edge, sys; print(*sys.modules)")[0].split()
    assert not {"onnxruntime", "numpy", "tokenizers", "jinja2", "PIL"} & set(names)


def test_names_are_there_when_asked_for() -> None:
    import edge
    from edge.conversation import Conversation
    from edge.model import EdgeModel

    assert edge.EdgeModel is EdgeModel and edge.Conversation is Conversation
    assert {"EdgeModel", "Conversation"} <= set(dir(edge))
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        _ = edge.Modell
