"""Whole exports: the folder that the runtime opens, its report, and the gate before it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli import app
from edge.build import GRAPHS, SETTINGS_FILES, open_build
from edge.model import EdgeModel
from genrecal.core.errors import BuildError, ConfigError
from genrecal.core.manifest import verify_manifest
from genrecal.data.source import named_sources
from genrecal.demo.datasets import write_training_set
from genrecal.export import gate, initializers, parity, stitch
from genrecal.export.build import export_run, export_student
from genrecal.export.calibration import queries_of
from genrecal.export.graph_parity import open_graph
from genrecal.export.initializers import initializer_bytes
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize import blocks
from genrecal.export.quantize.blocks import scales_of
from genrecal.export.quantize.schemes import files_of, scheme_of
from genrecal.models.processors import load_model, load_processor

QUERIES = parity.default_queries()[:3]
BITS = {
    "int8": dict(zip(GRAPHS, (7, 8, 8), strict=True)),
    "int4": dict(zip(GRAPHS, (7, 8, 4), strict=True)),
}
Exporter = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """precision -> a build of the student, exported once."""
    folder, done = tmp_path_factory.mktemp("builds"), {}

    def export(precision: str) -> Path:
        if precision not in done:
            done[precision] = export_run(
                student_folder,
                folder / precision,
                precision=precision,
                min_agreement=0,  # random weights
                parity_prompts=QUERIES,
            )
        return done[precision]

    return export


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_build_is_what_the_runtime_opens(exported: Exporter, precision: str) -> None:
    folder = exported(precision)
    build = open_build(folder)
    assert (build.family, build.precision) == ("qwen2_vl", precision)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *SETTINGS_FILES,
        *files_of(scheme_of(precision, "cpu")).values(),
        "parity.json",
        "README.md",
        "manifest.json",
    }
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]
    answer = EdgeModel(build, *_cpu()).answer((Image.new("RGB", (50, 40), "red"), "how many?"))
    assert answer.token_ids


def _cpu() -> tuple[Any, int]:
    from edge.device import require_device

    return require_device("cpu"), 1


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_manifest_says_what_a_precision_means(exported: Exporter, precision: str) -> None:
    folder = exported(precision)
    manifest = verify_manifest(folder, kind="build")
    said = manifest["quantization"]
    assert (said["name"], said["target"]) == (precision, manifest["target"]) == (precision, "cpu")
    for graph, found in said["graphs"].items():
        assert found["bytes"] == initializer_bytes(folder / manifest["graphs"][graph])
        assert found["bytes"] < 0.6 * found["source_bytes"]
        assert found["bits"] == BITS[precision][graph] and found["execution_provider"] == "CPU"
        assert found["rounding"] == "nearest"  # no training data
    (kept,) = said["graphs"]["vision_encoder"]["kept_higher"].values()
    assert kept["stored"] == "float32" and "patch" in kept["why"]
    assert manifest["provenance"]["weights"]
    assert manifest["versions"]["onnxruntime"]


def test_a_build_for_tensorrt_needs_training_data(student_folder: Path, tmp_path: Path) -> None:
    """And with it, vision is int8 in both operands; the language model is a Jetson's."""
    options: dict[str, Any] = {"precision": "int4", "target": "jetson-tensorrt", "parity_prompts": QUERIES}
    with pytest.raises(BuildError, match=r"there are no images to calibrate with.*--calibration"):
        export_run(student_folder, tmp_path / "build", **options)
    assert not list(tmp_path.iterdir())
    data = tmp_path / "data" / "conversations.json"
    write_training_set(data.parent, seed=0, images=3, split="distill")
    prompts = len(queries_of(named_sources([data])).calibration)
    folder = export_run(
        student_folder,
        tmp_path / "build",
        calibration=[data],
        min_agreement=0,  # its weights are random
        **options,
    )
    said = verify_manifest(folder, kind="build")["quantization"]["graphs"]
    assert said["vision_encoder"]["execution_provider"] == "TensorRT"
    assert said["vision_encoder"]["calibration_images"] == prompts > 3
    assert said["decoder_model_merged"]["scheme"] == "w4a16"
    assert said["decoder_model_merged"]["rounding"] == f"gptq, {prompts} prompts of the training data"


def test_the_report_is_measured(exported: Exporter) -> None:
    report = json.loads((exported("int8") / "parity.json").read_text())["precisions"]
    assert set(report) == {"fp32", "int8"}
    assert report["fp32"]["difference"]["decoder_model_merged"] < parity.LOGITS_TOLERANCE
    assert report["fp32"]["greedy_answers_equal"] == report["fp32"]["queries"] == len(QUERIES)
    assert 1e-4 < report["int8"]["relative_logits_error"] < 0.2
    assert report["int8"]["forced_top1"] > 0.7
    assert report["int8"]["worst"]["query"][0].startswith("<image ")
    assert set(json.loads((exported("fp32") / "parity.json").read_text())["precisions"]) == {"fp32"}


def test_fifty_questions_about_images_of_different_sizes(student_folder: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    sizes = [(generator.randint(20, 300), generator.randint(20, 300)) for _ in range(50)]
    queries = [
        (Image.effect_noise(size, 90).convert("RGB"), f"how many circles {number}")
        for number, size in enumerate(sizes)
    ]
    build = export_run(student_folder, tmp_path / "build", precision="fp32", parity_prompts=queries)
    found = json.loads((build / "parity.json").read_text())["precisions"]["fp32"]
    assert found["queries"] == found["prompts_equal"] == found["greedy_answers_equal"] == 50
    assert found["difference"]["decoder_model_merged"] < 1e-3


def test_exporting_again_gives_the_same_bytes(
    exported: Exporter, student_folder: Path, tmp_path: Path
) -> None:
    first = exported("int8")
    again = export_run(
        student_folder, tmp_path / "again", precision="int8", min_agreement=0, parity_prompts=QUERIES
    )
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(first)).read_bytes(), path.name


@pytest.mark.full
@pytest.mark.parametrize(("precision", "target"), [("int4", "cpu"), ("int8", "jetson-tensorrt")])
def test_calibrating_again_gives_the_same_bytes(
    student_folder: Path, tmp_path: Path, precision: str, target: str
) -> None:
    data = tmp_path / "data" / "conversations.json"
    write_training_set(data.parent, seed=0, images=3, split="distill")
    first, again = (
        export_run(
            student_folder,
            tmp_path / name,
            precision=precision,
            target=target,
            calibration=[data],
            min_agreement=0,
            parity_prompts=QUERIES,
        )
        for name in ("first", "again")
    )
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(first)).read_bytes(), path.name


def test_float16_is_measured_and_half_the_size(exported: Exporter) -> None:
    folder = exported("fp16")
    report = json.loads((folder / "parity.json").read_text())
    assert 1e-6 < report["graphs"]["fp16"]["relative_logits_error"] < 1e-2
    assert report["precisions"]["fp16"]["forced_top1"] > 0.9
    assert 0 < report["largest_activation"]["largest"] < 65504
    for graph in GRAPHS:
        size = initializer_bytes(folder / f"onnx/{graph}_fp16.onnx")
        assert size < 0.53 * initializer_bytes(exported("fp32") / f"onnx/{graph}.onnx")
    decoder = open_graph(folder / f"onnx/{GRAPHS[2]}_fp16.onnx")
    types = {entry.name: entry.type for entry in (*decoder.get_inputs(), *decoder.get_outputs())}
    assert types["inputs_embeds"] == types["logits"] == "tensor(float)"
    assert types["past_key_values.0.key"] == types["present.0.key"] == "tensor(float16)"


def test_activations_beyond_float16_are_refused(student_folder: Path, tmp_path: Path) -> None:
    """fp32 is exported, fp16 is not, and the module is named; the answers stay as they are."""
    large = shutil.copytree(student_folder, tmp_path / "large")
    model = load_model(large, dtype=torch.float32)
    layer = model.model.language_model.layers[1].mlp
    with torch.no_grad():
        layer.up_proj.weight.mul_(1e7)
        layer.down_proj.weight.div_(1e7)
    model.save_pretrained(large)
    with pytest.raises(BuildError, match=r"'model.language_model.layers.1.mlp.*' reaches .*float16 ends at"):
        export_run(large, tmp_path / "fp16", precision="fp16", parity_prompts=QUERIES)
    assert not (tmp_path / "fp16").exists()
    export_run(large, tmp_path / "fp32", precision="fp32", parity_prompts=QUERIES[:1])


def test_weights_outside_their_graph_travel_along(
    exported: Exporter, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large graphs have them; here small ones are made so."""
    monkeypatch.setattr(initializers, "INLINE_BYTES", 0)
    monkeypatch.setattr(initializers, "ALIGNMENT", 4096)
    folder = export_run(student_folder, tmp_path / "build", precision="fp32", parity_prompts=QUERIES[:1])
    assert f"onnx/{GRAPHS[0]}.onnx_data" in open_build(folder).manifest["files"]
    for graph in GRAPHS:
        size = initializer_bytes(folder / f"onnx/{graph}.onnx")
        assert size == initializer_bytes(exported("fp32") / f"onnx/{graph}.onnx")
        assert (folder / f"onnx/{graph}.onnx").stat().st_size < 0.8 * size + 200_000


def test_a_large_student_is_compared_layer_by_layer(
    exported: Exporter, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graphs; torch reads its weights as it goes, and nothing is opened whole."""
    monkeypatch.setattr(gate, "WHOLE_BYTES", 0)
    monkeypatch.setattr(parity, "compare", None)
    folder = export_run(
        student_folder, tmp_path / "build", precision="int8", min_agreement=0, parity_prompts=QUERIES
    )
    report = json.loads((folder / "parity.json").read_text())
    assert report["torch"] == "layer by layer" and report["precisions"] == {}
    assert report["graphs"]["fp32"]["difference"]["decoder_model_merged"] < parity.LOGITS_TOLERANCE
    assert report["graphs"]["int8"]["forced_top1"] > 0.7
    for graph in GRAPHS:
        name = f"onnx/{graph}_int8.onnx"
        assert (folder / name).read_bytes() == (exported("int8") / name).read_bytes()


def test_too_little_agreement_leaves_no_build(student_folder: Path, tmp_path: Path) -> None:
    """Nothing agrees to more than all of it; the costliest weights are in the manifest of one that passes."""
    with pytest.raises(
        BuildError,
        match=r"for [\d.]+% of \d+ answer tokens \(95% interval .*, asked for are 101%.*--keep-fp16",
    ):
        export_run(
            student_folder,
            tmp_path / "build",
            precision="int4",
            min_agreement=1.01,
            keep_fp16="auto",
            parity_prompts=QUERIES[:1],
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "least"), [("int8", "98%"), ("int4", "95%")])
def test_the_gate_stands_without_being_asked_for(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, least: str
) -> None:
    """The command with its defaults, on weights that are rounded as coarsely as two bits would."""
    monkeypatch.setattr(blocks, "scales_of", lambda values, bits: scales_of(values, 2))
    output = tmp_path / "build"
    done = CliRunner().invoke(app, ["export", str(student_folder), f"--{precision}", "--output", str(output)])
    assert done.exit_code == BuildError.exit_code == 5
    assert f"asked for are {least}" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_not_uploaded_unmerged(student_folder: Path, tmp_path: Path) -> None:
    words = ["export", str(student_folder), "--adapter", str(tmp_path), "--push-student", "me/student"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == ConfigError.exit_code
    assert "would upload the student without its adapter" in " ".join(done.stderr.split())


def test_a_large_student_is_asked_all_over_the_mixture() -> None:
    queries = [(str(number),) for number in range(32)]
    assert [int(text) for (text,) in gate._spread(queries, 8)] == [0, 4, 9, 13, 18, 22, 27, 31]
    assert gate._spread(queries[:3], 8) == queries[:3]


def test_the_manifest_names_the_costliest_weights(exported: Exporter) -> None:
    graphs = verify_manifest(exported("int4"), kind="build")["quantization"]["graphs"]
    costs = [cost["divergence"] for cost in graphs["decoder_model_merged"]["costliest"]]
    assert costs == sorted(costs, reverse=True) and len(costs) == 5 and costs[0] > 0


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
def test_wrong_graphs_do_not_pass(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """A weight that is written wrong is found by the comparison of graphs, and no build is left."""

    def wrong(weight: stitch.Weight, *rest: Any) -> Iterator[bytes]:
        for piece in right(weight, *rest):
            factor = 1.01 if weight.source.endswith("layers.1.mlp.up_proj.weight") else 1.0
            yield (np.frombuffer(piece, np.float32) * np.float32(factor)).tobytes()

    right = stitch._pieces
    monkeypatch.setattr(gate, "WHOLE_BYTES", 1 << 40 if whole else 0)
    monkeypatch.setattr(stitch, "_pieces", wrong)
    with pytest.raises(BuildError, match="not this checkpoint: the output of decoder_model_merged differs"):
        export_run(student_folder, tmp_path / "build", precision="fp32", parity_prompts=QUERIES)
    assert not list(tmp_path.iterdir())


def test_graphs_of_another_checkpoint_do_not_pass_the_gate(exported: Exporter, student_folder: Path) -> None:
    """One weight more than rounding away is found, and named with the worst query."""
    model = load_model(student_folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.up_proj.weight[3] += 0.5
    checkpoint = parity.Checkpoint(model=model, processor=load_processor(student_folder))
    found = parity.compare(parity.checkpoint_answers(checkpoint, QUERIES), exported("fp32"))
    assert found.difference["vision_encoder"] < 1e-3
    assert found.difference["decoder_model_merged"] > parity.LOGITS_TOLERANCE
    with pytest.raises(BuildError, match=r"logits differ by .*allowed is 0.001 \(worst query: .*<image "):
        parity.require_equal(found, where=student_folder)


def test_a_failing_gate_leaves_no_build(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older build stays as it was when the new graphs are wrong."""
    output = tmp_path / "build"
    old = export_run(student_folder, output, precision="fp32", parity_prompts=QUERIES[:1])
    before = (old / "manifest.json").read_bytes()

    def wrong_graphs(student: Path, folder: Path, **options: Any) -> dict[str, Path]:
        model = load_model(student, dtype=torch.float32)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        model.save_pretrained(tmp_path / "other")
        return export_graphs(tmp_path / "other", folder, **options)

    monkeypatch.setattr("genrecal.export.build.export_graphs", wrong_graphs)
    with pytest.raises(BuildError, match="the fp32 graphs are not this checkpoint"):
        export_run(student_folder, output, precision="int8", parity_prompts=QUERIES[:1])
    assert (output / "manifest.json").read_bytes() == before
    verify_manifest(output, kind="build")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "other"]


def test_a_folder_of_something_else_is_not_replaced(student_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(student_folder, tmp_path / "mine")
    with pytest.raises(BuildError, match="exists and is no build"):
        export_student(student_folder, tmp_path / "mine", precision="int8", provenance={})
    with pytest.raises(BuildError, match=r"unknown precision 'int3'\. Known: fp32, fp16, int8, int4"):
        export_student(student_folder, tmp_path / "new", precision="int3", provenance={})
    assert not (tmp_path / "new").exists()


def test_a_shape_or_a_nan_counts_as_infinitely_far() -> None:
    difference = {"graph": 0.0}
    assert parity._note(difference, "graph", np.zeros((2, 3)), np.zeros((3, 2))) == np.inf
    assert parity._note(difference, "graph", np.array([np.nan]), np.zeros(1)) == np.inf
    assert difference == {"graph": np.inf}
