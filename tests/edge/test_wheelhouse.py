"""genrecal with its edge extras, from wheels alone, for a device of another Python and platform."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tomllib

from edge import wheelhouse
from edge.wheelhouse import Target, build_wheel, collect, device_lines, resolve, target_of
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.manifest import verify_manifest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "deepspeed", "optimum", "onnx", "scipy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_runtime(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "edge").rglob("*.py")]
    assert set(sources) <= names and "cli.py" in names


def test_pip_is_told_every_platform_that_the_device_runs() -> None:
    options = Target(python="3.10", glibc="2.31").options()
    platforms = [options[place + 1] for place, word in enumerate(options) if word == "--platform"]
    assert platforms[0] == "manylinux_2_31_aarch64" and "manylinux_2_17_aarch64" in platforms
    assert platforms[-1] == "manylinux2014_aarch64" and "manylinux_2_35_aarch64" not in platforms
    assert "--only-binary=:all:" in options


def test_conditions_are_read_for_the_device() -> None:
    """pip reads them for the interpreter that it runs in, which is newer here."""
    found: list[dict[str, Any]] = [
        {
            "metadata": {
                "name": "anyio",
                "version": "4",
                "requires_dist": [
                    "idna>=2.8",
                    'exceptiongroup>=1.0.2; python_version < "3.11"',
                    'colorama; sys_platform == "win32"',
                    'trio; extra == "trio"',
                ],
            }
        },
        {"metadata": {"name": "IDNA", "version": "3"}},
    ]
    assert wheelhouse._left_out(found, Target(python="3.10")) == ["exceptiongroup>=1.0.2"]
    assert wheelhouse._left_out(found, Target(python="3.12")) == []
    found[0]["requested_extras"] = ["trio"]
    assert wheelhouse._left_out(found, Target(python="3.12")) == ["trio"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("2.7", "aarch64", "2.35"), "--python"),
        (("3.10", "arm", "2.35"), "--machine"),
        (("3.10", "aarch64", "2"), "glibc"),
    ],
)
def test_targets_that_are_none(given: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target_of(*given)


def test_what_is_refused(tmp_path: Path) -> None:
    target = Target(python="3.10")
    with pytest.raises(ConfigError, match="unknown extra 'train'"):
        collect(tmp_path / "out", extras=("train",), target=target)
    with pytest.raises(ConfigError, match="is no wheel"):
        collect(tmp_path / "out", extras=("edge",), target=target, added=[tmp_path / "a.whl"])
    with pytest.raises(ConfigError, match=r"is no checkout of genrecal: it has no pyproject\.toml"):
        collect(tmp_path / "out", extras=("edge",), target=target, source=tmp_path)
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is no wheelhouse"):
        collect(tmp_path, extras=("edge",), target=target)
    assert (tmp_path / "mine").read_text() == "keep"


def test_extras_are_those_that_a_device_uses(tmp_path: Path) -> None:
    """All that pyproject.toml has and that runs there; `--trusted-key` needs `sign`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert set(wheelhouse.EXTRAS) == set(extras) - {"train", "track", "export", "dev"}
    with pytest.raises(ConfigError, match="is no checkout"):  # and not the extra
        collect(tmp_path / "out", extras=("edge", "sign"), target=Target(python="3.10"), source=tmp_path)


def test_the_cpu_s_runtime_goes_before_the_gpu_s_comes() -> None:
    first = 'pip install --no-index --find-links wheels "genrecal[edge,sign]"'
    assert device_lines("wheels", ("edge", "sign"), [Path("other-1.0-py3-none-any.whl")]) == [first]
    wheel = Path("somewhere/onnxruntime_gpu-1.23.2-cp310-cp310-linux_aarch64.whl")
    assert device_lines("wheels", ("edge", "sign"), [wheel]) == [
        first,
        "pip uninstall --yes onnxruntime",
        "pip install --no-index --find-links wheels --no-deps onnxruntime-gpu",
    ]


def test_a_package_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GenrecalError, match="pip install failed") as caught:
        wheelhouse._report([str(tmp_path / "nowhere-1.0-py3-none-any.whl")], Target(python="3.10"))
    assert "\n" not in str(caught.value)


def index_or_skip() -> None:
    """Skip where no package index answers."""
    command = [sys.executable, "-m", "pip", "index", "versions", "idna"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("SKIPPED LOUDLY: no package index can be reached, so nothing was resolved")


@pytest.mark.full
@pytest.mark.parametrize(("python", "glibc"), [("3.10", "2.35"), ("3.12", "2.39")])
@pytest.mark.parametrize("extras", [("edge",), ("edge", "serve"), ("edge", "sign")], ids="+".join)
def test_the_extras_resolve_for_a_jetson(
    wheel: Path, python: str, glibc: str, extras: tuple[str, ...]
) -> None:
    index_or_skip()
    found = resolve([f"{wheel}[{','.join(extras)}]"], Target(python=python, glibc=glibc))
    assert {"genrecal", "onnxruntime", "tokenizers", "numpy", "pillow", "typer"} <= set(found)
    assert ("starlette" in found) == ("serve" in extras) and not HEAVY & set(found)
    assert ("cryptography" in found) == ("sign" in extras)
    if "serve" in extras:
        assert ("exceptiongroup" in found) == (python == "3.10")
    assert tuple(map(int, found["onnxruntime"].split(".")[:2])) >= (1, 23)


@pytest.mark.full
def test_a_wheelhouse_installs_without_an_index(tmp_path: Path) -> None:
    """For this very machine, so that the installation can be run: an environment from the folder alone."""
    index_or_skip()
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    house = collect(tmp_path / "wheels", extras=("edge",), target=Target(python=python, machine="x86_64"))
    manifest = verify_manifest(house, kind=wheelhouse.KIND)
    assert manifest["python"] == python and len(manifest["files"]) == len(list(house.glob("*.whl")))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "--quiet", "install", "--no-index"]
    subprocess.run([*pip, "--find-links", str(house), "genrecal[edge]"], check=True, timeout=300)
    code = "import edge, json, sys; edge.EdgeModel; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [str(tmp_path / "venv/bin/python"), "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert not HEAVY & set(json.loads(done.stdout))
    again = collect(house, extras=("edge",), target=Target(python=python, machine="x86_64"))
    assert again == house and verify_manifest(house, kind=wheelhouse.KIND)
