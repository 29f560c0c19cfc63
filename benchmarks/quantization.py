"""What int8 and int4 cost in answers, save in bytes and gain in speed, on models that are really trained.

    python -m benchmarks.quantization

The students are benchmarks/models/student (Qwen2-VL) and strong (InternVL). Torch in float32 answers fresh
questions of the demo's test split greedily; each way of rounding is asked for the same tokens, one after the
other (teacher-forced), through all three graphs. Calibration sees questions of the training split alone.

    RESULTS/quantization.json

    agreement   student -> way -> share of tokens with the same likeliest one, relative error of the logits
    scores      the demo's three benchmarks: fp32's build against int8's and int4's, paired by question
    sizes       language initializers over those of fp16; also for Qwen2-VL-2B's shapes, which are computed
    speed       one product of Qwen2-VL-2B's widths by kernel, interleaved: CPU time of the one thread that
                computes, the least of several, so that other work on the machine counts little
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import typer
from onnx import TensorProto, helper, numpy_helper

from bench.judge import OfflineJudge
from bench.paired import paired_difference
from bench.scoring import score
from bench.task import Choices
from bench.tasks import TASKS
from edge import build as layout
from edge.model import EdgeModel
from genrecal.core.console import console, errors
from genrecal.core.errors import ConfigError, GenrecalError
from genrecal.core.files import read_json, write_json
from genrecal.data.llava import read_llava
from genrecal.demo.datasets import write_test_sets, write_training_set
from genrecal.export.build import export_student
from genrecal.export.calibration import CALIBRATED, query_of
from genrecal.export.graph_parity import embeddings, forced_logits, image_features, open_graph
from genrecal.export.initializers import initializer_bytes
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize.blocks import block_for
from genrecal.export.quantize.gptq import Gptq
from genrecal.export.quantize.schemes import SMALLEST_BLOCK, Blocks, GraphScheme, scheme_of
from genrecal.export.quantize.weights import quantize_weights
from genrecal.export.reference import Query, Reference, reference_of
from genrecal.models.processors import load_model, load_processor

MODELS = Path(__file__).with_name("models")
STUDENTS = ("student", "strong")
PARTS = ("agreement", "scores", "speed")
RESULTS = Path(__file__).parent / "results"
NAME = "quantization.json"
FULL_SIZE = Path(__file__).parents[1] / "configs/paper/models/Qwen2-VL-2B-Instruct"
NEW_TOKENS = 32
LANGUAGE = (layout.EMBED_TOKENS, layout.DECODER)
# Of Qwen2-VL-2B's mlp.
WIDTHS = (1536, 8960)
# A token, a question, an image of 448 x 448 in the vision encoder.
ROWS = (1, 128, 1024)
REPEATS = 10

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def run(
    part: Annotated[list[str] | None, typer.Option(help="Parts of PARTS; repeatable. Default: all.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="Of STUDENTS; repeatable. Default: all.")] = None,
    questions: Annotated[int, typer.Option(min=1, help="Fresh questions for the agreement.")] = 100,
    scored: Annotated[int, typer.Option(min=1, help="Questions of each benchmark.")] = 1000,
    results: Annotated[Path, typer.Option(help="Folder of quantization.json.")] = RESULTS,
) -> None:
    """Measure all parts, or some, which take the place of what quantization.json has of them."""
    if unknown := sorted({*(part or ())} - {*PARTS} | {*(student or ())} - {*STUDENTS}):
        raise ConfigError(f"nothing is called '{unknown[0]}'", fix=f"Known: {', '.join((*PARTS, *STUDENTS))}")
    path = results / NAME
    found: dict[str, Any] = read_json(path) if path.is_file() else {"agreement": {}, "sizes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        training = drawn(scratch / "training", "pretrain", seed=0, count=CALIBRATED)
        for name in (student or STUDENTS) if "agreement" in (part or PARTS) else ():
            folder = scratch / name
            fresh = drawn(folder / "test", "test", seed=7, count=questions)
            agreement, sizes = measured(MODELS / name / "student", folder, training, fresh)
            found["agreement"][name], found["sizes"][name] = agreement, sizes
            write_json(path, found)
        if "scores" in (part or PARTS):
            found["scores"] = scores(MODELS / STUDENTS[0] / "student", scratch, training, scored)
    if "speed" in (part or PARTS):
        found["sizes"]["Qwen2-VL-2B, computed"] = computed_sizes(FULL_SIZE)
        found["speed"] = speed()
    found["machine"] = {"processor": platform.machine(), "cores": os.cpu_count(), "vnni": has_vnni()}
    found["versions"] = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    write_json(path, found)
    console.print(found)


def drawn(folder: Path, split: Any, *, seed: int, count: int) -> list[Query]:
    """Questions about images of the demo; the splits share none."""
    write_training_set(folder, seed=seed, images=count, split=split)
    return [query_of(sample) for sample in itertools.islice(read_llava(folder / "conversations.json"), count)]


def measured(
    student: Path, folder: Path, training: Sequence[Query], fresh: Sequence[Query]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Agreement and sizes of one student, by way of rounding."""
    model, processor = load_model(student), load_processor(student)
    calibration, _ = reference_of(model, processor, training, max_new_tokens=NEW_TOKENS)
    expected, _ = reference_of(model, processor, fresh, max_new_tokens=NEW_TOKENS)
    fp32 = export_graphs(student, folder / "fp32")
    fp16 = export_graphs(student, folder / "fp16", precision="fp16")
    half = language_bytes(fp16)
    agreement = {"fp32": agree(expected, fp32)}
    sizes: dict[str, Any] = {
        "fp16_bytes": half,
        "fp16_vision_bytes": initializer_bytes(fp16["vision_encoder"]),
    }
    for name, (precision, decoder) in WAYS.items():
        target = folder / name
        target.mkdir()
        graphs = {graph: target / f"{graph}.onnx" for graph in layout.GRAPHS}
        scheme = scheme_of(precision, "cpu")
        for graph in layout.GRAPHS[:2]:
            quantize_weights(fp32[graph], graphs[graph], scheme[graph])
        decoder(fp32[layout.DECODER], graphs[layout.DECODER], scheme[layout.DECODER], calibration)
        agreement[name] = agree(expected, graphs)
        sizes[name] = {
            "language_over_fp16": language_bytes(graphs) / half,
            "vision_bytes": initializer_bytes(graphs[layout.VISION_ENCODER]),
        }
    return agreement, sizes


def agree(references: Sequence[Reference], graphs: dict[str, Path]) -> dict[str, float]:
    """How often the graphs, one fed by the other, like the same token best as torch does."""
    seen, texts = image_features(references, graphs), embeddings(references, graphs)
    session = open_graph(graphs[layout.DECODER])
    tokens = same = 0
    error = norm = 0.0
    for reference, features_MD, embeds_SD in zip(references, seen, texts, strict=True):
        if features_MD is not None:
            embeds_SD[reference.is_image_S] = features_MD
        logits_AV = forced_logits(session, replace(reference, embeds_SD=embeds_SD))
        tokens += len(logits_AV)
        same += int((logits_AV.argmax(1) == reference.logits_AV.argmax(1)).sum())
        error += float(np.square(logits_AV - reference.logits_AV, dtype=np.float64).sum())
        norm += float(np.square(reference.logits_AV, dtype=np.float64).sum())
    return {"forced_top1": same / tokens, "tokens": tokens, "relative_logits_error": (error / norm) ** 0.5}


def language_bytes(graphs: dict[str, Path]) -> int:
    return sum(initializer_bytes(graphs[graph]) for graph in LANGUAGE)


def _scheme(source: Path, target: Path, scheme: GraphScheme, _: Sequence[Reference]) -> None:
    quantize_weights(source, target, scheme)


def _gptq(source: Path, target: Path, scheme: GraphScheme, calibration: Sequence[Reference]) -> None:
    quantize_weights(source, target, scheme, rounding=Gptq(source, calibration))


def _level(level: int) -> Callable[..., None]:
    def rounded(source: Path, target: Path, scheme: GraphScheme, _: Sequence[Reference]) -> None:
        assert isinstance(scheme.weights, Blocks)
        quantize_weights(
            source, target, replace(scheme, weights=replace(scheme.weights, accuracy_level=level))
        )

    return rounded


def _dynamic(*, reduced: bool) -> Callable[..., None]:
    """onnxruntime's int8 per channel, dynamic activations; reduced: 7-bit weights, which do not saturate."""

    def rounded(source: Path, target: Path, _: GraphScheme, __: Sequence[Reference]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduced,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # behind ONNX Runtime's own operators
        )

    return rounded


# way -> the precision of vision encoder and embedding, and what is done to the decoder
WAYS: dict[str, tuple[str, Callable[..., None]]] = {
    "int8": ("int8", _scheme),
    "int8, float activations": ("int8", _level(0)),
    "int8, dynamic per channel": ("int8", _dynamic(reduced=False)),
    "int8, dynamic per channel, 7 bits": ("int8", _dynamic(reduced=True)),
    "int4, nearest": ("int4", _scheme),
    "int4, gptq": ("int4", _gptq),
}


def scores(student: Path, scratch: Path, training: Sequence[Query], count: int) -> dict[str, Any]:
    """The demo's benchmarks, answered greedily by the builds."""
    sets = write_test_sets(scratch / "sets", seed=0, questions=count)
    paths = {"mmb": sets.mmb, "mmmu": sets.mmmu, "mmvet": sets.mmvet}
    hits: dict[str, dict[str, Any]] = {}
    for precision in ("fp32", "int8", "int4"):
        folder = export_student(
            student,
            scratch / precision,
            precision=precision,
            provenance={},
            calibration=training,
            min_agreement=0,
        )
        model = EdgeModel.open(folder, threads=1)
        hits[precision] = {}
        for name, path in paths.items():
            task = TASKS[name]
            rows = task.load(path)
            asked = (task.prompt(row) for row in rows)
            replies = {query.id: model.answer(query.parts, do_sample=False).text for query in asked}
            choices = Choices(judge=OfflineJudge())
            hits[precision][name] = score(task, rows, replies, choices, generation="greedy").hits
    found: dict[str, Any] = {"questions": count}
    for precision, name in itertools.product(("int8", "int4"), paths):
        difference = paired_difference(hits[precision][name], hits["fp32"][name])
        found.setdefault(precision, {})[name] = {
            "fp32": float(np.mean(list(hits["fp32"][name].values()))),
            "difference": difference.mean,
            "interval_95": [difference.interval.low, difference.interval.high],
            "questions": difference.n,
        }
    return found


def computed_sizes(config: Path) -> dict[str, float]:
    """Bytes of the language initializers over fp16's, from the shapes of a model's weights."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(config))
    model.tie_weights()
    table = model.get_input_embeddings().weight
    shapes = {
        name: weight.shape
        for name, weight in model.named_parameters()
        if ".visual." not in name and weight is not table
    }
    # The head is in the decoder, tied or not.
    shapes["lm_head.weight"] = model.get_output_embeddings().weight.shape
    rows, width = table.shape
    half = 2 * (table.numel() + sum(torch.Size(shape).numel() for shape in shapes.values()))
    found = {}
    for precision in ("int8", "int4"):
        scheme = scheme_of(precision, "cpu")[layout.DECODER]
        total = rows * width + 4 * rows
        for name, shape in shapes.items():
            bits = scheme.bits_of(name) if len(shape) == 2 else None
            if bits is None:
                total += 4 * torch.Size(shape).numel()
                continue
            assert isinstance(scheme.weights, Blocks)
            outputs, inputs = shape
            block = block_for(inputs, scheme.weights.block, SMALLEST_BLOCK)
            total += outputs * -(-inputs // block) * (block * bits // 8 + 4)
        found[precision] = total / half
    return found


def speed() -> dict[str, Any]:
    """Milliseconds of one product by kernel and rows, and how much faster than float32."""
    weight_KN = np.random.default_rng(0).normal(size=WIDTHS).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = _product(weight_KN, folder / "fp32.onnx")
        paths = {"fp32": source}
        for name, (precision, decoder) in WAYS.items():
            if name != "int4, gptq":  # the same kernel as int4's
                paths[name] = folder / f"{len(paths)}.onnx"
                decoder(source, paths[name], scheme_of(precision, "cpu")[layout.DECODER], ())
        sessions = {name: _session(path) for name, path in paths.items()}
        found: dict[str, Any] = {"widths": list(WIDTHS), "threads": 1}
        for rows in ROWS:
            x = np.random.default_rng(1).normal(size=(rows, WIDTHS[0])).astype(np.float32)
            best = dict.fromkeys(sessions, np.inf)
            for _, (name, session) in itertools.product(range(REPEATS), sessions.items()):
                start = time.thread_time()
                session.run(None, {"x": x})
                best[name] = min(best[name], time.thread_time() - start)
            found[f"{rows} rows"] = {
                name: {"ms": 1e3 * seconds, "times_fp32": best["fp32"] / seconds}
                for name, seconds in best.items()
            }
    return found


def _product(weight_KN: np.ndarray, path: Path) -> Path:
    inputs, outputs = weight_KN.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(weight_KN, "w")],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def has_vnni() -> bool | None:
    """Whether an x86 CPU multiplies bytes without saturation; None where Linux does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return None
    flags = cpuinfo.read_text(encoding="utf-8").split()
    return "avx512_vnni" in flags or "avx_vnni" in flags


if __name__ == "__main__":
    try:
        app()
    except GenrecalError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
