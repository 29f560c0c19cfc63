"""What README and docs show is really there: commands, options, configs, paths, names, fields and codes.

Markdown -> fenced blocks -> command lines -> the parsers of `genrecal` and the targets of the Makefile
         -> code spans    -> paths, and names as `path.py::name`, looked up in the source without importing it
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from PIL import Image

import cli
from edge.serve.settings import ServeSettings
from genrecal.core import errors
from genrecal.core.config import load_config, parse_config
from genrecal.data.llava import read_llava
from genrecal.export.linter import NEVER_ON_GPU, NEVER_ON_GPU_PREFIX

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = ("genrecal", "edge", "bench")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH_SPAN = re.compile(
    r"`((?:(?:genrecal|edge|bench|tests|configs|docs|\.ci)/[\w./-]+)|[\w-]+\.(?:py|toml|md)|constraints\.txt)"
    r"(?:::([\w.]+))?`"
)
LINK = re.compile(r"\]\(([^)#]+)\)")
JOINS = ("&&", "||", ";", "|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command line of a fenced block."""

    document: str
    words: tuple[str, ...]

    @property
    def genrecal(self) -> list[str] | None:
        """The arguments of `genrecal`, also where a launcher starts it as `-m cli`."""
        for start in (("genrecal",), ("-m", "cli")):
            for place in range(len(self.words)):
                if self.words[place : place + len(start)] == start:
                    return list(self.words[place + len(start) :])
        return None


def blocks(document: Path, *languages: str) -> list[str]:
    found = FENCE.findall(document.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands() -> Iterator[Command]:
    for document in DOCUMENTS:
        for text in blocks(document, "console", "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                words: list[str] = []
                for word in [*shlex.split(line, comments=True), ";"]:
                    if word not in JOINS:
                        words.append(word)
                    elif words:
                        yield Command(document=document.name, words=tuple(words))
                        words = []


def name_of(command: Command) -> str:
    return f"{command.document}: {' '.join(command.words)}"


COMMANDS = tuple(commands())
GENRECAL = tuple(command for command in COMMANDS if command.genrecal is not None)
MAKE = tuple(command for command in COMMANDS if command.words[0] == "make")


def parsed(command: Command) -> tuple[str, dict[str, Any]]:
    """The command's name and parameters, parsed by the command line's own parser but not run."""
    node: Any = typer.main.get_command(cli.app)
    words = command.genrecal or []
    name = "genrecal"
    while hasattr(node, "commands"):
        name = words.pop(0)
        assert name in node.commands, f"no command '{name}'"
        node = node.commands[name]
    return name, node.make_context(name, words).params


def top_commands(node: Any) -> Iterator[str]:
    for name, child in node.commands.items():
        if hasattr(child, "commands"):
            yield from top_commands(child)
        else:
            yield name


@pytest.mark.parametrize("command", GENRECAL, ids=name_of)
def test_genrecal_takes_each_command(command: Command) -> None:
    name, parameters = parsed(command)
    config = parameters.get("config")
    if config is not None:
        assert (ROOT / config).is_file(), f"{config} is not there"
    if name == "distill":
        from genrecal.train.settings import RunConfig

        load_config(ROOT / config, RunConfig, parameters["overrides"] or ())
    if name == "demo":
        from genrecal.demo.settings import load_demo_config

        load_demo_config(config, parameters["overrides"] or ())


def test_a_gpu_is_given_builds_that_are_made_for_it() -> None:
    """The runtime refuses the others; an export's default folder says what it is for."""
    shown = [
        (command.document, word)
        for command in GENRECAL
        if {"jetson", "cuda"} & {b for a, b in itertools.pairwise(command.words) if a == "--device"}
        for word in command.words
        if Path(word).name.startswith("build-")
    ]
    shown += [
        (document.name, name)
        for document in DOCUMENTS
        for text in blocks(document, "python")
        for name, device in re.findall(r'Path\("(build-[^"]+)"\), device="(\w+)"', text)
        if device != "cpu"
    ]
    assert {document for document, _ in shown} >= {"README.md", "jetson.md", "subjects.md", "devices.md"}
    assert [pair for pair in shown if not pair[1].endswith(("-jetson", "-jetson-tensorrt"))] == []


def test_limits_and_refused_operators_are_those_of_the_code() -> None:
    edge, export = ((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("edge", "export"))
    assert f"| more than {ServeSettings().max_images} images in a conversation | 400 |" in edge
    (row,) = (line for line in export.splitlines() if line.startswith("| `jetson` | CUDA"))
    named = set(re.findall(r"`(\w+\*?)`", row)) - {"jetson"}
    assert named == {*NEVER_ON_GPU, f"{NEVER_ON_GPU_PREFIX}*"}


def test_every_command_is_shown_in_the_readme() -> None:
    shown = {parsed(command)[0] for command in GENRECAL if command.document == "README.md"}
    # `make demo` is how the README shows the demo.
    assert shown | {"demo"} == set(top_commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("command", MAKE, ids=name_of)
def test_make_has_each_target_and_variable(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in command.words[1:]:
        variable, given, value = word.partition("=")
        pattern = rf"^{variable} \?=" if given else rf"^{word}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no '{variable}'"
        if variable == "DEMO_ARGS":
            parsed(Command(document="", words=("genrecal", "demo", *shlex.split(value))))


def test_the_readme_starts_with_the_two_commands() -> None:
    first = blocks(README, "console")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


def test_modules_that_are_run_exist() -> None:
    modules = {
        command.words[place + 1]
        for command in COMMANDS
        for place, word in enumerate(command.words[:-1])
        if word == "-m"
    }
    assert "cli" in modules
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module


def names_in(path: Path) -> set[str]:
    """What a module defines at its top level, and `Class.member`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)
            }
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_paths_and_names_exist(document: Path) -> None:
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    spans = PATH_SPAN.findall(prose)
    assert spans, "the pattern finds no path here"
    for path, name in spans:
        # A bare file name stands for one at the root, or for one that the text has placed.
        if "/" in path or (ROOT / path).exists():
            assert (ROOT / path).exists(), f"{path} is not there"
        if name:
            assert name in names_in(ROOT / path), f"{path} has no {name}"
    for target in LINK.findall(prose):
        assert (document.parent / target).exists(), f"{target} is not there"


def tree() -> set[str]:
    """The paths in README's annotated tree; files stand indented under their folder."""
    (block,) = [text for text in blocks(README, "text") if text.startswith("cli.py")]
    paths, folder = set(), ""
    for line in block.splitlines():
        entry = line.split()[0]
        if not line.startswith(" "):
            folder = entry if entry.endswith("/") else ""
            paths.add(entry)
        else:
            paths.add(folder + entry)
    return paths


def test_the_tree_is_the_tree() -> None:
    listed = tree()
    assert {path for path in listed if not (ROOT / path).exists()} == set()
    there = {"cli.py"} | {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "__init__.py"
    }
    assert there == {path for path in listed if not path.endswith("/")}


def test_the_drawing_and_the_boxes_agree() -> None:
    drawing, _ = blocks(README, "text")
    boxes = re.findall(
        r"^\| \d+ \| (\w+) \|", (ROOT / "docs/architecture.md").read_text("utf-8"), re.MULTILINE
    )
    places = [re.search(rf"^[ |]*{box}\b", drawing, re.MULTILINE) for box in boxes]
    assert len(boxes) == 11
    assert all(places), boxes
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)


def test_exit_codes() -> None:
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)`", (ROOT / "docs/architecture.md").read_text("utf-8"), re.MULTILINE
    )
    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GenrecalError)
    }
    assert {name: int(code) for code, name in rows} == codes


def test_metrics_fields() -> None:
    from genrecal.train.reading import KEYS, reading_metrics

    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    # The first table of fields is of a line, the second of its `reading`.
    of_line, of_reading = (
        {
            name
            for row in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
            for name in re.findall(r"`(\w+)`", row)
        }
        for table in re.split(r"^\| field.*$", text, flags=re.MULTILINE)[1:]
    )
    loop = ast.parse((ROOT / "genrecal/train/loop.py").read_text(encoding="utf-8"))
    (record,) = [
        node.value
        for node in ast.walk(loop)
        if isinstance(node, ast.AnnAssign)
        and getattr(node.target, "id", "") == "record"
        and isinstance(node.value, ast.Dict)
    ]
    written = {key.value for key in record.keys if isinstance(key, ast.Constant)}
    assert of_line == written | {"reading", "skipped"}  # the two that not every line has
    assert of_reading == reading_metrics(dict.fromkeys(KEYS, 0.0), ranks=1, distils=True).keys()


def test_python_blocks_import_what_exists() -> None:
    sources = [text for document in DOCUMENTS for text in blocks(document, "python")]
    assert sources
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            known = names_in(ROOT / f"{(node.module or '').replace('.', '/')}.py")
            assert {alias.name for alias in node.names} <= known


def test_config_and_data_examples_are_read(tmp_path: Path) -> None:
    from genrecal.train.settings import DataConfig

    (config,) = blocks(ROOT / "docs/data.md", "yaml")
    parse_config(yaml.safe_load(config)["data"], DataConfig, where="docs/data.md")
    (example,) = blocks(ROOT / "docs/data.md", "json")
    (tmp_path / "example.json").write_text(example, encoding="utf-8")
    (sample,) = read_llava(tmp_path / "example.json")
    sample.images[0].parent.mkdir()
    Image.new("RGB", (8, 8)).save(sample.images[0])
    assert sample.answer == "The red one."
