"""Builds for other clients: what is renamed, and that it is the same build otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge.build import GRAPHS, open_build
from genrecal.core.errors import BuildError
from genrecal.export import initializers, parity
from genrecal.export.build import export_run
from genrecal.export.graph_parity import open_graph

QUERIES = parity.default_queries()[:1]


def export(student: Path, folder: Path, **options: str) -> Path:
    return export_run(student, folder, precision="fp32", parity_prompts=QUERIES, **options)


def test_a_build_for_transformers_js(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initializers, "INLINE_BYTES", 0)
    ours = export(student_folder, tmp_path / "ours")
    theirs = export(student_folder, tmp_path / "theirs", client="transformers.js")
    assert open_build(theirs).manifest["client"] == "transformers.js"
    assert open_build(ours).manifest["client"] == "genrecal"
    config = json.loads((theirs / "config.json").read_text())
    assert config["num_hidden_layers"] == config["text_config"]["num_hidden_layers"]
    assert config["model_type"] == "qwen2_vl"
    settings = config["transformers.js_config"]
    assert settings["use_external_data_format"] == {f"{graph}.onnx": 1 for graph in GRAPHS}
    assert settings["dtype"] == dict.fromkeys(GRAPHS, "fp32")
    template = json.loads((theirs / "tokenizer_config.json").read_text())["chat_template"]
    assert template == (theirs / "chat_template.jinja").read_text()
    for name in (f"onnx/{graph}.onnx_data" for graph in GRAPHS):
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()
    for name in ("onnx/embed_tokens.onnx", "onnx/decoder_model_merged.onnx", "tokenizer.json"):
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()
    pixels_NE, grid_I3 = np.ones((24, 384), np.float32), np.array([[1, 4, 6]])
    features = [
        open_graph(folder / "onnx/vision_encoder.onnx").run(None, {"pixel_values": pixels_NE, grid: grid_I3})[
            0
        ]
        for folder, grid in ((ours, "image_grid_thw"), (theirs, "grid_thw"))
    ]
    assert np.array_equal(*features)


def test_each_graph_of_an_int4_build_has_its_own_type(student_folder: Path, tmp_path: Path) -> None:
    build = export_run(
        student_folder,
        tmp_path / "build",
        precision="int4",
        client="transformers.js",
        min_agreement=0,
        parity_prompts=QUERIES,
    )
    settings = json.loads((build / "config.json").read_text())["transformers.js_config"]
    assert settings["dtype"] == dict(zip(GRAPHS, ("int8", "int8", "q4"), strict=True))
    for graph, dtype in settings["dtype"].items():
        assert (build / "onnx" / f"{graph}_{dtype}.onnx").is_file()


def test_other_clients_and_families_are_refused(
    student_folder: Path, family_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=r"no client is called 'mlc'. Known: genrecal, transformers\.js"):
        export(student_folder, tmp_path / "build", client="mlc")
    with pytest.raises(
        BuildError, match=r"transformers\.js does not run our graphs of the family 'internvl'"
    ):
        export(family_folders["internvl"], tmp_path / "build", client="transformers.js")
    assert not (tmp_path / "build").exists()
