"""The Dockerfile copies what is there, and leaves every version to constraints.txt. It was not built."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, comments and line ends gone."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = {source for rest in of("COPY") for source in shlex.split(rest)[:-1]}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!").rstrip("/") for line in ignore if line.startswith("!")}
    assert copied == allowed and "*" in ignore
    for source in copied:
        assert (ROOT / source).exists(), source
    setuptools = PROJECT["tool"]["setuptools"]
    assert {"cli.py", "genrecal", "edge", "bench"} <= copied and setuptools["py-modules"] == ["cli"]


def test_versions_come_from_the_constraints() -> None:
    installs = [part for rest in of("RUN") for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 3
    for install in installs:
        assert "--constraint constraints.txt" in install and "==" not in install
    assert {"torch", "deepspeed", "ninja"} <= set(PINS)
    (extras,) = re.findall(r"\.\[([\w,]+)\]", installs[-1])
    assert set(extras.split(",")) == set(PROJECT["project"]["optional-dependencies"]) - {"dev"}


@pytest.mark.parametrize("extra", sorted(PROJECT["project"]["optional-dependencies"]))
def test_the_projects_own_pins_are_the_constraints(extra: str) -> None:
    for requirement in PROJECT["project"]["optional-dependencies"][extra]:
        name, _, version = requirement.partition("==")
        assert not version or PINS[name] == version


def test_the_python_is_the_one_that_is_checked() -> None:
    (base,) = of("FROM")
    version = PROJECT["tool"]["mypy"]["python_version"]
    assert re.fullmatch(rf"python:{re.escape(version)}\.\d+-slim-\w+", base)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_genrecal_and_not_as_root() -> None:
    names = [name for name, _ in instructions()]
    (entry,) = of("ENTRYPOINT")
    (word,) = json.loads(entry)
    assert word in PROJECT["project"]["scripts"]
    assert of("USER") == ["1000"] and names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
