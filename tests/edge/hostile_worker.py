"""One process that opens mutated builds and asks them; whatever becomes of it, its parent sees it.

    python -m tests.edge.hostile_worker BUILD SCRATCH FIRST LAST

writes a line before a case and one after it: number, file, and what came of it. The mutated file is hashed
anew, so that it passes the first check and reaches the parsers. Standard library and edge alone decide; the
onnx package is a second opinion on where weights lie.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors
from PIL import Image

from edge import build as layout
from edge.model import EdgeModel
from genrecal.core.errors import BuildError, GenrecalError
from genrecal.core.manifest import NAME, file_entry
from tests.edge.mutations import mutated_bytes, mutated_graph, mutated_json

# Of address space: three sessions' arenas and threads, and far less than a declared tensor of 2**40 takes.
MEMORY_BYTES = 6 * 2**30
GRAPHS = tuple(layout.graph_file(graph, "") for graph in layout.GRAPHS)
JSONS = (
    layout.CONFIG,
    layout.GENERATION_CONFIG,
    layout.PREPROCESSOR_CONFIG,
    layout.TOKENIZER,
    layout.TOKENIZER_CONFIG,
    layout.SPECIAL_TOKENS_MAP,
)


def mutate(name: str, data: bytes, generator: random.Random) -> bytes:
    if name in GRAPHS:
        return mutated_graph(data, generator)
    return mutated_json(data, generator) if name in JSONS else mutated_bytes(data, generator)


def run_case(folder: Path, name: str, data: bytes) -> str:
    """What becomes of a build whose file `name` holds `data`."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / NAME).read_text())
    manifest["files"][name] = file_entry(folder / name)
    (folder / NAME).write_text(json.dumps(manifest))
    try:
        model = EdgeModel.open(folder, threads=1, memory_bytes=2 * 10**9)
    except BuildError as error:
        return _line("refused", error)
    except GenrecalError as error:
        return _line(f"refused as {type(error).__name__}", error)
    _require_inside(folder, name)
    image = Image.effect_noise((56, 56), 80).convert("RGB")
    try:
        answer = model.answer((image, "what is it?"), max_new_tokens=2)
    except GenrecalError as error:
        return _line("refused when asked", error)
    return "answered" if isinstance(answer.text, str) and len(answer.token_ids) <= 2 else f"odd {answer!r}"


def _line(what: str, error: Exception) -> str:
    text = str(error)
    return f"LINES {text!r}" if "\n" in text or len(text) > 1500 else f"{what}: {text}"


def _require_inside(folder: Path, name: str) -> None:
    """A second opinion: with the onnx package's own parser, no weight lies outside of the build."""
    if name not in GRAPHS:
        return
    model: Any = onnx.load(str(folder / name), load_external_data=False)
    for tensor in _get_all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = (folder / "onnx" / ExternalDataInfo(tensor).location).resolve()
            if not place.is_relative_to(folder) or not place.is_file():
                raise AssertionError(f"opened, and reads {place}")


def main(build: Path, scratch: Path, first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    names = (*GRAPHS, *GRAPHS, *JSONS, layout.CHAT_TEMPLATE)
    folder = scratch / f"build-{first}"
    for number in range(first, last):
        generator = random.Random(number)
        name = names[number % len(names)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(build, folder)
        data = mutate(name, (folder / name).read_bytes(), generator)
        print(json.dumps({"case": number, "file": name}), flush=True)
        try:
            result = run_case(folder, name, data)
        except Exception as error:  # what the caller of EdgeModel would have to deal with
            result = f"RAISED {type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
        print(json.dumps({"case": number, "result": result}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
