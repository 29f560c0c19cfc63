"""The arrows of docs/architecture.md: who may import whom, read from the sources with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("genrecal", "edge", "bench", "cli")
HEAVY = {"torch", "transformers", "deepspeed", "peft", "optimum", "accelerate", "onnx"}
# Of the bench, what answers with a checkpoint alone.
CHECKPOINT = "bench/subjects/checkpoint.py"
TORCH_SUBJECTS = (CHECKPOINT, "bench/subjects/processes.py")
# What an edge device has: the base dependencies and the extra `edge`.
EDGE_LIBRARIES = {"numpy", "onnxruntime", "tokenizers", "PIL", "jinja2", "pydantic", "yaml", "rich", "psutil"}
# What its endpoint needs besides: the extra `serve`.
SERVE_LIBRARIES = {"starlette", "uvicorn", "prometheus_client"}
BASE_LIBRARIES = {"numpy", "PIL", "jinja2", "pydantic", "yaml", "rich", "typer"}
PACKAGES = (
    "genrecal.plan",
    "genrecal.train",
    "genrecal.export",
    "genrecal.demo",
    "genrecal.figures",
    "genrecal.models",
    "genrecal.data",
    "genrecal.convert",
    "edge",
    "bench",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement; `nested` where it runs only when its function does."""

    where: str
    name: str
    nested: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]

    def within(self, *packages: str) -> bool:
        return any(self.name == package or self.name.startswith(package + ".") for package in packages)


def imports_of(path: Path, *, package: str) -> list[Import]:
    """Every import in a file: at its head, in functions, under `if TYPE_CHECKING`."""
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found: list[Import] = []

    def walk(node: ast.AST, nested: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(where=where, name=alias.name, nested=nested) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            # `from genrecal import models` imports genrecal.models
            found.extend(
                Import(where=where, name=f"{base}.{alias.name}", nested=nested) for alias in node.names
            )
        elif isinstance(node, ast.Call) and _dynamic(node):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"
            found.append(Import(where=where, name=str(name), nested=nested))
        inside = nested or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def _dynamic(node: ast.Call) -> bool:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name in ("import_module", "__import__") and bool(node.args)


def package_imports(package: str) -> Iterator[Import]:
    folder = ROOT.joinpath(*package.split("."))
    paths = sorted(folder.rglob("*.py"))
    assert paths, f"no sources in {package}"
    for path in paths:
        yield from imports_of(path, package=".".join(path.relative_to(ROOT).parent.parts))


def assert_none(wrong: list[Import]) -> None:
    assert not wrong, "\n".join(f"{one.where} imports {one.name}" for one in wrong)


def test_core_is_a_torch_free_leaf() -> None:
    found = list(package_imports("genrecal.core"))
    assert_none([one for one in found if one.top in OURS and not one.within("genrecal.core")])
    libraries = BASE_LIBRARIES | sys.stdlib_module_names | {"genrecal"}
    at_head = [one for one in found if not one.nested]
    assert_none([one for one in at_head if one.top not in libraries])
    assert_none([one for one in found if one.top in HEAVY])


def test_edge_reads_core_and_its_libraries_alone() -> None:
    found = list(package_imports("edge"))
    assert_none([one for one in found if one.top in OURS and not one.within("edge", "genrecal.core")])
    allowed = EDGE_LIBRARIES | sys.stdlib_module_names | set(OURS)
    # A GPU or Jetson library may be looked for inside a function; torch and transformers never.
    wrong = [one for one in found if one.top not in allowed and (not one.nested or one.top in HEAVY)]
    assert_none(
        [one for one in wrong if not (one.where.startswith("edge/serve/") and one.top in SERVE_LIBRARIES)]
    )


def test_bench_reads_edge_and_the_models_inside_one_subject() -> None:
    found = list(package_imports("bench"))
    allowed = ("bench", "edge", "genrecal.core")
    lazily = [one for one in found if one.top in OURS and not one.within(*allowed)]
    assert_none(
        [
            one
            for one in lazily
            if not (one.where == CHECKPOINT and one.nested and one.within("genrecal.models"))
        ]
    )
    assert_none(
        [one for one in found if one.top in HEAVY and not (one.where in TORCH_SUBJECTS and one.nested)]
    )


# package: what it may import of ours, beside itself and genrecal.core
ARROWS = {
    "genrecal.data": ("genrecal.models",),
    "genrecal.models": ("genrecal.data",),
    "genrecal.convert": ("genrecal.models",),
    "genrecal.train": ("genrecal.data", "genrecal.models"),
    "genrecal.plan": ("genrecal.data", "genrecal.models", "genrecal.train"),
    "genrecal.export": ("genrecal.data", "genrecal.models", "edge"),
    # What a run and a bench leave on disk, and nothing of how it came there.
    "genrecal.figures": ("bench.report",),
}


@pytest.mark.parametrize("package", ARROWS)
def test_arrows(package: str) -> None:
    allowed = (package, "genrecal.core", *ARROWS[package])
    found = [one for one in package_imports(package) if one.top in OURS]
    assert_none([one for one in found if not one.within(*allowed)])


def test_figures_are_drawn_without_torch() -> None:
    assert_none([one for one in package_imports("genrecal.figures") if one.top in HEAVY])


def test_nobody_imports_the_command_line_or_the_demo() -> None:
    for package in ("genrecal.core", *PACKAGES):
        found = list(package_imports(package))
        assert_none([one for one in found if one.top in ("cli", "tests") or one.within("genrecal.commands")])
        if package != "genrecal.demo":
            assert_none([one for one in found if one.within("genrecal.demo")])


def test_the_command_line_has_nothing_heavy_at_its_head() -> None:
    found = [*imports_of(ROOT / "cli.py", package=""), *package_imports("genrecal.commands")]
    head = [one for one in found if not one.nested]
    allowed = {"typer", "rich"} | sys.stdlib_module_names
    light = ("genrecal.core", "genrecal.commands")
    assert_none([one for one in head if one.top not in allowed and not one.within(*light)])


BLOCKED = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "deepspeed", "peft", "optimum", "onnxruntime"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
import cli
sys.argv = ["genrecal", *sys.argv[1:]]
cli.app()
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["distill", "--help"], ["ask", "--help"], ["bench", "--help"]]
)
def test_help_works_where_torch_is_not(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Usage: genrecal" in done.stdout


@pytest.mark.parametrize(
    ("text", "name", "nested"),
    [
        ("import torch.nn as nn", "torch.nn", False),
        ("def f():\n    from torch import nn", "torch.nn", True),
        ("class A:\n    import torch", "torch", False),
        ("from ..models import vlm", "genrecal.models.vlm", False),
        ("from . import losses", "genrecal.train.losses", False),
        ("if x:\n    import torch", "torch", False),
        ("y = lambda: __import__('torch')", "torch", True),
        ("import importlib\nimportlib.import_module('torch')", "torch", False),
    ],
)
def test_the_reader_of_imports_sees_them_all(tmp_path: Path, text: str, name: str, nested: bool) -> None:
    (tmp_path / "a.py").write_text(text)
    found = imports_of(tmp_path / "a.py", package="genrecal.train")
    assert (name, nested) in {(one.name, one.nested) for one in found}
