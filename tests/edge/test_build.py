"""Builds made to hurt: each gets one line that names the folder, the file and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge import build as layout
from edge.build import open_build
from edge.model import EdgeModel
from genrecal.core.errors import BuildError
from genrecal.core.manifest import write_manifest


@pytest.fixture
def copy(build_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(build_folder, tmp_path / "copy")


def rewrite(folder: Path, **facts: object) -> None:
    """Make the manifest again: what follows is altered by its maker, not by an accident."""
    before = json.loads((folder / "manifest.json").read_text())
    kept = {key: before[key] for key in ("family", "precision", "suffix", "provenance", "quantization")}
    write_manifest(folder, **{"kind": layout.KIND, **kept, **facts})


def refusal(folder: Path, **options: bool) -> str:
    with pytest.raises(BuildError) as caught:
        open_build(folder, **options)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("verify", [True, False])
def test_a_build_opens(build_folder: Path, verify: bool) -> None:
    build = open_build(build_folder, verify=verify)
    assert build.family == "qwen2_vl" and build.precision == "fp32"
    assert build.config["model_type"] == "qwen2_vl"
    assert build.decoder == build_folder / "onnx/decoder_model_merged.onnx"
    assert all(path.is_file() for path in (build.vision_encoder, build.embed_tokens, build.tokenizer))


def test_the_suffix_names_the_graphs(copy: Path) -> None:
    for graph in layout.GRAPHS:
        (copy / layout.graph_file(graph, "")).rename(copy / layout.graph_file(graph, "_int8"))
    rewrite(copy, precision="int8", suffix="_int8")
    assert open_build(copy).embed_tokens == copy / "onnx/embed_tokens_int8.onnx"


def test_a_folder_that_is_no_build(tmp_path: Path, student_folder: Path) -> None:
    assert "no such build folder" in refusal(tmp_path / "nowhere")
    assert "is no build folder: it has no manifest.json" in refusal(student_folder)
    (tmp_path / "manifest.json").write_text('{"kind": "run", "format": 1, "files": {}}')
    assert "is a folder of kind 'run', not 'build'" in refusal(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["tokenizer.json", "onnx/vision_encoder.onnx", "chat_template.jinja"])
def test_a_missing_file(copy: Path, name: str, verify: bool) -> None:
    (copy / name).unlink()
    assert f"file '{name}' is missing. Copy the whole folder again" in refusal(copy, verify=verify)


def test_a_flipped_byte_in_any_file(copy: Path) -> None:
    names = [path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(names) == len(layout.SETTINGS_FILES) + len(layout.GRAPHS) + 1
    for path in names:
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert f"file '{path.relative_to(copy).as_posix()}' differs from its SHA-256" in refusal(copy)
        path.write_bytes(content)
    open_build(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"kind": "build", ', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "is damaged"),
        (b'{"kind": "build", "format": 2}', "has manifest format 2"),
        (b'{"kind": "build", "format": 1}', "is damaged"),
        (b'{"kind": "build", "format": 1, "files": {"config.json": 3}}', "is damaged"),
        (b'{"kind": "build", "format": 1, "files": {}, "suffix": ""}', "does not list 'config.json'"),
    ],
)
def test_a_damaged_manifest(copy: Path, content: bytes, message: str) -> None:
    (copy / "manifest.json").write_bytes(content)
    assert message in refusal(copy)


def test_a_precision_that_its_suffix_does_not_have(copy: Path) -> None:
    rewrite(copy, precision="int8")
    assert "names precision 'int8' with suffix ''" in refusal(copy)


def test_an_unlisted_graph_is_not_opened(copy: Path) -> None:
    """A file that has no SHA-256 is as bad as one with a wrong one."""
    name = layout.graph_file(layout.DECODER, "")
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    rewrite(copy)
    (copy / name).write_bytes(content)
    assert f"does not list '{name}'" in refusal(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[]", "config.json: holds no mapping"),
        ("config.json", b"{}", "its config.json lacks a value"),
        ("tokenizer.json", b"{}", "tokenizer.json: cannot be read"),
        ("chat_template.jinja", b"{% for %}", "its chat template is not valid"),
        ("chat_template.jinja", b"\xff", "is damaged"),
        ("chat_template.jinja", b"nothing", "the chat template places 0 of 1 images"),
        (
            "chat_template.jinja",
            b"{{ raise_exception('no\\nimages') }}",
            "its chat template fails .no images",
        ),
        ("generation_config.json", b'{"num_beams": 4}', "asks for 'num_beams' = 4"),
        ("preprocessor_config.json", b'{"do_resize": false}', "'do_resize' is False"),
        ("onnx/embed_tokens.onnx", b"no graph", "embed_tokens.onnx: onnxruntime cannot load it"),
    ],
)
def test_a_build_of_wrong_files(copy: Path, name: str, content: bytes, message: str) -> None:
    from tests.edge.conftest import noise

    (copy / name).write_bytes(content)
    rewrite(copy)
    with pytest.raises(BuildError, match=message) as caught:
        EdgeModel.open(copy, threads=1).answer((noise(32, 32), "?"), max_new_tokens=1)
    assert "\n" not in str(caught.value)


def test_graphs_in_each_others_place(copy: Path) -> None:
    vision, embed = (copy / layout.graph_file(graph, "") for graph in layout.GRAPHS[:2])
    spare = copy / "spare"
    vision.rename(spare)
    embed.rename(vision)
    spare.rename(embed)
    rewrite(copy)
    with pytest.raises(BuildError, match="takes input_ids: not the graph that this runtime expects"):
        EdgeModel.open(copy)
