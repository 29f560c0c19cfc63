"""A build sees; one whose graphs lose the image does not, and the graph is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge.build import DECODER, EMBED_TOKENS, GRAPHS, VISION_ENCODER
from genrecal.core.errors import BuildError
from genrecal.export import gate, image_dependence, parity
from genrecal.export.build import export_run
from genrecal.export.image_dependence import compare, measure_build, measure_graphs, probes, require_seen
from genrecal.export.onnx_graphs import export_graphs
from genrecal.models.processors import load_processor
from tests.edge.conftest import write_build

QUERIES = parity.default_queries()[:1]
# The families that differ: grids and three axes, tiles, tiles with a mask, tiles with a size.
FAMILIES = (
    "internvl",
    *(pytest.param(name, marks=pytest.mark.full) for name in ("llava_onevision", "qwen2_5_vl", "smolvlm")),
)
BY_SIZE = pytest.mark.parametrize(
    "whole", [True, pytest.param(False, marks=pytest.mark.full)], ids=["whole", "graph by graph"]
)
Surgery = Callable[[onnx.GraphProto], None]


def scaled(graph: onnx.GraphProto, name: str, factor: float) -> None:
    """Multiply an input of the graph before anything reads it."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = f"{name}_scaled"
    graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    graph.node.insert(0, helper.make_node("Mul", [name, "factor"], [f"{name}_scaled"], "scaled"))


def black_pixels(graph: onnx.GraphProto) -> None:
    scaled(graph, "pixel_values", 0.0)


def drowned_features(graph: onnx.GraphProto) -> None:
    """Not quite alike: what is left of the image are roundings of something larger."""
    (last,) = [node for node in graph.node if "image_features" in node.output]
    last.output[0] = "seen"
    width = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    constants = {"factor": np.array(1e-7, np.float32), "pattern": np.arange(width, dtype=np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.append(helper.make_node("Mul", ["seen", "factor"], ["faint"], "faint"))
    graph.node.append(helper.make_node("Add", ["faint", "pattern"], ["image_features"], "drowned"))


def last_product(graph: onnx.GraphProto) -> None:
    """Its weight becomes zero; features are its bias."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    product = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants][-1]
    weight = constants[product.input[1]]
    zeros = np.zeros_like(numpy_helper.to_array(weight))
    weight.CopyFrom(numpy_helper.from_array(zeros, weight.name))


def deaf_decoder(graph: onnx.GraphProto) -> None:
    """It computes from zeros, whatever it is given."""
    scaled(graph, "inputs_embeds", 0.0)


def broken(build: Path, folder: Path, graph: str, surgery: Surgery) -> Path:
    """A copy of a build with one graph cut up."""
    copy = shutil.copytree(build, folder / "broken")
    model = onnx.load(copy / f"onnx/{graph}.onnx")
    surgery(model.graph)
    onnx.save_model(model, copy / f"onnx/{graph}.onnx")
    return copy


def graphs_of(build: Path) -> dict[str, Path]:
    return {graph: build / f"onnx/{graph}.onnx" for graph in GRAPHS}


@pytest.fixture(scope="module")
def build(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_build(student_folder, tmp_path_factory.mktemp("seeing") / "build", "qwen2_vl")


def test_a_build_sees_whole_and_graph_by_graph(build: Path, student_folder: Path) -> None:
    whole = measure_build(build)
    apart = measure_graphs(student_folder, load_processor(student_folder), graphs_of(build))
    for found in (whole, apart):
        require_seen(found, where=build)
        assert found.features > 0.1 and found.logits > 0.01 and found.threshold < 1e-6
        assert found.images == tuple(probes()) and found.first_tokens > 1
    assert apart.features == pytest.approx(whole.features, rel=1e-3)
    assert apart.logits == pytest.approx(whole.logits, rel=1e-3)
    assert (apart.features_pair, apart.logits_pair) == (whole.features_pair, whole.logits_pair)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_sees(family_folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Students that were never trained do already; whole and graph by graph are the same figures."""
    student = family_folders[name]
    build = write_build(student, tmp_path / "build", name)
    whole = measure_build(build)
    require_seen(whole, where=student)
    assert whole.logits > 0.01
    apart = measure_graphs(student, load_processor(student), graphs_of(build))
    assert apart.logits == pytest.approx(whole.logits, rel=0.02)


@pytest.mark.parametrize(
    "surgery", [black_pixels, drowned_features, pytest.param(last_product, marks=pytest.mark.full)]
)
def test_a_blind_vision_encoder_is_named(
    build: Path, student_folder: Path, tmp_path: Path, surgery: Surgery
) -> None:
    folder = broken(build, tmp_path, VISION_ENCODER, surgery)
    processor = load_processor(student_folder)
    for found in (measure_build(folder), measure_graphs(student_folder, processor, graphs_of(folder))):
        with pytest.raises(BuildError, match=r"vision_encoder loses the image: .*rounding explains"):
            require_seen(found, where=folder)


def test_a_decoder_that_ignores_the_features_is_named(
    build: Path, student_folder: Path, tmp_path: Path
) -> None:
    folder = broken(build, tmp_path, DECODER, deaf_decoder)
    processor = load_processor(student_folder)
    for found in (measure_build(folder), measure_graphs(student_folder, processor, graphs_of(folder))):
        assert found.features > 0.1
        with pytest.raises(BuildError, match=r"decoder_model_merged loses the image: .*'red' and 'green'"):
            require_seen(found, where=folder)


def test_other_embeddings_of_text_do_not_matter(build: Path, tmp_path: Path) -> None:
    """The image does not go through them."""

    def zeros(graph: onnx.GraphProto) -> None:
        table = max(graph.initializer, key=lambda tensor: len(tensor.raw_data))
        table.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(table), table.name))

    found = measure_build(broken(build, tmp_path, EMBED_TOKENS, zeros))
    require_seen(found, where=tmp_path)


@BY_SIZE
def test_an_export_asks_and_reports(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(gate, "WHOLE_BYTES", 1 << 40 if whole else 0)
    folder = export_run(
        student_folder, tmp_path / "build", precision="int8", min_agreement=0, parity_prompts=QUERIES
    )
    found = json.loads((folder / "parity.json").read_text())["image_dependence"]
    assert found["logits"] > 100 * found["threshold"] > 0 and found["images"] == list(probes())


@BY_SIZE
def test_an_export_that_does_not_see_leaves_no_build(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Parity is met, for the student itself is blind: its checkpoint's last product is zero."""
    import torch

    from genrecal.models.processors import load_model

    blind = tmp_path / "blind"
    model: Any = load_model(student_folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.visual.merger.mlp[2].weight.zero_()
    model.save_pretrained(blind)
    load_processor(student_folder).save_pretrained(blind)
    monkeypatch.setattr(gate, "WHOLE_BYTES", 1 << 40 if whole else 0)
    with pytest.raises(BuildError, match="vision_encoder loses the image"):
        export_run(blind, tmp_path / "build", precision="fp32", parity_prompts=QUERIES)
    assert [path.name for path in tmp_path.iterdir()] == ["blind"]


def test_float16_builds_are_measured_by_their_own_roundings(student_folder: Path, tmp_path: Path) -> None:
    graphs = export_graphs(student_folder, tmp_path, precision="fp16")
    found = measure_graphs(student_folder, load_processor(student_folder), graphs)
    assert found.threshold == pytest.approx(16 * 2**-11)
    require_seen(found, where=tmp_path)


def test_what_all_values_share_does_not_count_and_a_nan_does() -> None:
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    same = {"a": logits, "b": logits + np.float32(3)}
    other = {"a": logits, "b": logits[::-1]}
    assert compare(other, same, computed_in=np.float32).logits < 1e-6 < 0.1
    assert compare(other, other, computed_in=np.float32).features > 1
    for wrong in ({**other, "b": logits * np.nan}, {**other, "b": logits[:9]}):
        found = compare(wrong, other, computed_in=np.float32)
        with pytest.raises(BuildError, match=r"vision_encoder loses the image: .*'a' and 'b' differ by nan"):
            require_seen(found, where=Path("build"))
    zeros = SimpleNamespace(a=np.zeros(5, np.float32), b=np.zeros(5, np.float32))
    assert image_dependence.compare(vars(zeros), other, computed_in=np.float32).features == 0
