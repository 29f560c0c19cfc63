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
    facts_kept = ("family", "precision", "target", "graphs", "provenance", "quantization")
    kept = {key: before[key] for key in facts_kept}
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


def test_the_manifest_names_each_graph(copy: Path) -> None:
    suffixes = dict(zip(layout.GRAPHS, ("_fp16", "_int8", "_q4"), strict=True))
    graphs = {graph: layout.graph_file(graph, suffix) for graph, suffix in suffixes.items()}
    for graph, name in graphs.items():
        (copy / layout.graph_file(graph, "")).rename(copy / name)
    rewrite(copy, precision="int4", graphs=graphs)
    build = open_build(copy)
    assert build.embed_tokens == copy / "onnx/embed_tokens_int8.onnx"
    assert build.decoder == copy / "onnx/decoder_model_merged_q4.onnx"


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
        (
            b'{"kind": "build", "format": 1, "files": {}, "graphs": {"vision_encoder": "a", '
            b'"embed_tokens": "b", "decoder_model_merged": "c"}}',
            "does not list 'config.json'",
        ),
    ],
)
def test_a_damaged_manifest(copy: Path, content: bytes, message: str) -> None:
    (copy / "manifest.json").write_bytes(content)
    assert message in refusal(copy)


@pytest.mark.parametrize(("key", "known"), [("precision", "fp32, fp16"), ("target", "cpu, jetson")])
def test_a_precision_or_a_target_of_another_time(copy: Path, key: str, known: str) -> None:
    rewrite(copy, **{key: "int1"})
    assert f"names {key} 'int1'. This genrecal reads {known}" in refusal(copy)


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
        ("onnx/embed_tokens.onnx", b"no graph", "embed_tokens.onnx: is no ONNX graph"),
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
