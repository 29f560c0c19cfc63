"""Mutated builds: BuildError or the right answer, never a crash of the caller or a read outside.

The long lane counts 100,000 manifests and 5,000 graphs and settings; the default lane takes a fixed sample.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from edge import build as layout
from edge.build import open_build
from genrecal.core.errors import BuildError
from genrecal.core.manifest import NAME, write_manifest
from tests.edge.mutations import mutated_json

REPOSITORY = Path(__file__).parents[2]
SECRET = "what lies beside the build"
# A case takes some 50 ms alone; a machine may be busy, and a hang must still show.
CASE_S = 60
READ: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    """Python's own notes of what is opened; native code opens nothing before the checks are done."""
    named = READ is not None and event in ("open", "os.scandir", "os.listdir")
    if READ is not None and named and not isinstance(arguments[0], int):
        READ.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note)


def small_graph(path: Path) -> None:
    """One node and a weight in another file."""
    weight = onnx.TensorProto(name="w", dims=[4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", f"{path.name}_data"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    inputs, outputs = ([helper.make_tensor_value_info(name, 1, [4])] for name in "xy")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "small", inputs, outputs, [weight])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    path.with_name(f"{path.name}_data").write_bytes(bytes(16))


@pytest.fixture(scope="module")
def small_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that opens as a build, with all that a hostile manifest could name around it."""
    outside = tmp_path_factory.mktemp("hostile")
    (outside / "secret").write_text(SECRET)
    folder = outside / "build"
    (folder / "onnx").mkdir(parents=True)
    for name in layout.SETTINGS_FILES:
        (folder / name).write_text("{}" if name.endswith(".json") else "{{ messages }}")
    for graph in layout.GRAPHS:
        small_graph(folder / layout.graph_file(graph, ""))
    write_manifest(
        folder,
        kind=layout.KIND,
        family="qwen2_vl",
        precision="fp32",
        target="cpu",
        graphs={graph: layout.graph_file(graph, "") for graph in layout.GRAPHS},
        provenance={"student": "s", "weights": {"model.safetensors": "0" * 64}, "seeds": [1, 2]},
        quantization={"scheme": None},
    )
    return folder


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_mutated_manifests(small_build: Path, count: int) -> None:
    global READ
    data = (small_build / NAME).read_bytes()
    files = json.loads(data)["files"]
    outcomes: Counter[str] = Counter()
    try:
        for number in range(count):
            changed = mutated_json(data, random.Random(number))
            (small_build / NAME).write_bytes(changed)
            READ = []
            try:
                build = open_build(small_build)
            except BuildError as error:
                assert "\n" not in str(error) and len(str(error)) < 1100, number
                outcomes["refused"] += 1
            else:
                # What was changed vouches for nothing: the files are the same, and all were compared.
                assert build.manifest["files"] == files, number
                graphs = (build.vision_encoder, build.embed_tokens, build.decoder)
                assert {path.relative_to(small_build).as_posix() for path in graphs} <= files.keys(), number
                assert build.config == build.generation_config == build.special_tokens == {}, number
                outcomes["opened"] += 1
            finally:
                read, READ = READ, None
            strangers = [path for path in read if not path.startswith(str(small_build))]
            assert not strangers, (number, strangers)
    finally:
        (small_build / NAME).write_bytes(data)
    # Most of a manifest says what it may; what opens has other provenance, versions or names of no use.
    assert outcomes["refused"] > 0.4 * count and outcomes["opened"] > 0.02 * count, outcomes


def outcomes_of(
    build: Path, scratch: Path, first: int, last: int, *, root: Path = REPOSITORY
) -> Iterator[tuple[int, str]]:
    """Number and outcome of each case; a worker that dies or hangs is an outcome, and another goes on."""
    number = first
    while number < last:
        command = [sys.executable, "-m", "tests.edge.hostile_worker"]
        command += [str(build), str(scratch), str(number), str(last)]
        allowed_s = CASE_S + 2 * (last - number)
        died = "ended"
        try:
            done = subprocess.run(
                command,
                cwd=root,
                capture_output=True,
                text=True,
                timeout=allowed_s,
                check=False,
                errors="replace",
            )
            output, died = done.stdout, f"DIED with {done.returncode}: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired as error:
            taken = error.stdout or b""
            output = taken.decode(errors="replace") if isinstance(taken, bytes) else taken
            died = f"HUNG for more than {allowed_s} s"
        open_case = number
        for line in output.splitlines():
            if line.startswith('{"case"'):
                entry = json.loads(line)
                open_case = entry["case"]
                if "result" in entry:
                    yield entry["case"], entry["result"]
                    number = entry["case"] + 1
        if number < last:
            yield open_case, died
            number = open_case + 1


@pytest.mark.parametrize("count", [60, pytest.param(5_000, marks=pytest.mark.full)])
@pytest.mark.timeout(7200)
def test_mutated_graphs_and_settings(build_folder: Path, tmp_path: Path, count: int) -> None:
    found = dict(outcomes_of(build_folder, tmp_path, 0, count))
    allowed = ("refused: ", "refused when asked: ", "answered")
    wrong = {number: result for number, result in found.items() if not result.startswith(allowed)}
    assert not wrong
    assert sorted(found) == list(range(count))
    kinds = Counter(result.partition(":")[0] for result in found.values())
    assert kinds["refused"] > 0.3 * count and kinds["answered"] > 0.1 * count, kinds


def test_a_worker_that_dies_is_seen(build_folder: Path, tmp_path: Path) -> None:
    """The harness itself: a build that ends its worker is an outcome, and the cases after it are run."""
    (tmp_path / "tests" / "edge").mkdir(parents=True)
    for folder in ("tests", "tests/edge"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "tests/edge/hostile_worker.py").write_text(
        "import json, os, sys\n"
        "for case in range(int(sys.argv[3]), int(sys.argv[4])):\n"
        "    print(json.dumps({'case': case, 'file': 'x'}), flush=True)\n"
        "    if case == 1:\n        os.abort()\n"
        "    print(json.dumps({'case': case, 'result': 'answered'}), flush=True)\n"
    )
    found = dict(outcomes_of(build_folder, tmp_path, 0, 3, root=tmp_path))
    assert found[0] == found[2] == "answered" and found[1].startswith("DIED with -6")
