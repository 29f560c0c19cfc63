"""A student as a build: a folder that answers questions about images where there is no torch.

    student/ -> torch model -> fp32 graphs -> parity gate -> (int8: quantized graphs -> parity) -> build

The layout belongs to `edge.build`, which reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edge import build as layout
from genrecal.core import card
from genrecal.core.console import console
from genrecal.core.errors import BuildError
from genrecal.core.files import atomic_folder, read_json, write_json
from genrecal.core.manifest import NAME as MANIFEST
from genrecal.core.manifest import write_manifest
from genrecal.export import parity
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.quantize import initializer_bytes, quantize_graph, scheme
from genrecal.export.student import family_of, find_student
from genrecal.models.processors import load_model, load_processor

FP32_SCHEME = {"name": "fp32", "weights": "float32", "activations": "float32"}


def export_run(
    path: Path,
    output: Path,
    *,
    precision: str = "int8",
    parity_prompts: Sequence[parity.Query] | None = None,
) -> Path:
    """Export the student that `path` names, a run folder or a model folder; see `export_student`.

    Raises:
        ModelError: `path` names no student that can be exported.
        BuildError: the export failed, its graphs are not the checkpoint's, or `output` holds something else.
    """
    student = find_student(path)
    return export_student(
        student.folder,
        output,
        precision=precision,
        provenance=student.provenance,
        parity_prompts=parity_prompts,
    )


def export_student(
    student_folder: Path,
    output: Path,
    *,
    precision: str,
    provenance: dict[str, Any],
    parity_prompts: Sequence[parity.Query] | None = None,
) -> Path:
    """Export a student to a build folder.

    The fp32 graphs always pass the parity gate against torch first; an int8 build is made from them.

    Args:
        student_folder: a plain Hugging Face folder of a supported family.
        output: the build folder; an older build there is replaced whole, at the end.
        precision: "fp32" or "int8".
        provenance: what the manifest says of the student's origin; `find_student` gives it.
        parity_prompts: queries (image, question) of the parity report; `parity.default_queries` if None.

    Returns:
        `output`.

    Raises:
        ModelError: the folder holds no student that can be exported.
        BuildError: the export failed, its graphs are not the checkpoint's, or `output` holds something else.
    """
    if precision not in layout.SUFFIXES:
        raise BuildError(f"unknown precision '{precision}'", fix=f"Known: {', '.join(layout.SUFFIXES)}")
    _check_output(output)
    family = family_of(student_folder)
    queries = parity.default_queries() if parity_prompts is None else parity_prompts

    console.print(f"export: loading {student_folder}")
    # The eager attention is what is traced, so it is what the graphs are compared with.
    model = load_model(student_folder, dtype=torch.float32, attn_implementation="eager")
    processor = load_processor(student_folder)
    checkpoint = parity.Checkpoint(model=model, processor=processor)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.fp32.") as scratch:
        fp32 = Path(scratch)
        console.print(f"export: tracing {len(layout.GRAPHS)} graphs")
        export_graphs(model, _graphs(fp32, "fp32")[0].parent)
        _write_settings(model, processor, fp32)
        _sign(fp32, family, "fp32", provenance, FP32_SCHEME)
        expected = parity.checkpoint_answers(checkpoint, queries)
        report = {"fp32": parity.compare(expected, fp32)}
        if precision == "fp32":
            parity.print_report(report)
        parity.require_equal(report["fp32"], where=student_folder)

        with atomic_folder(output) as folder:
            _write_settings(model, processor, folder)
            meaning = _write_graphs(fp32, folder, precision)
            if precision != "fp32":
                _sign(folder, family, precision, provenance, meaning)
                report[precision] = parity.compare(expected, folder)
                parity.print_report(report)
            write_json(folder / layout.PARITY, parity.as_json(report))
            size = sum(initializer_bytes(path) for path in _graphs(folder, precision))
            card.write_build_card(
                folder, provenance=provenance, precision=precision, weights_bytes=size, quantization=meaning
            )
            _sign(folder, family, precision, provenance, meaning)
    console.print(f"build: {output} ({precision}, weights {size / 1e6:.2f} MB)")
    return output


def _check_output(output: Path) -> None:
    """An export replaces `output` whole, so it must be new, empty or a build."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    kind = read_json(output / MANIFEST).get("kind") if (output / MANIFEST).is_file() else None
    if kind != layout.KIND:
        raise BuildError("exists and is no build", where=output, fix="Give another output folder")


def _graphs(folder: Path, precision: str) -> list[Path]:
    return [folder / layout.graph_file(graph, layout.SUFFIXES[precision]) for graph in layout.GRAPHS]


def _write_settings(model: Any, processor: Any, folder: Path) -> None:
    """Config, generation, preprocessing and tokenizer files, as the installed transformers writes them.

    Published folders differ with their age (flat configs, the chat template inside a JSON file); written
    anew, they are all alike, and the runtime needs to know one layout alone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model.config.save_pretrained(scratch)
        model.generation_config.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for name in layout.SETTINGS_FILES:
            written = Path(scratch) / name
            if not written.is_file():
                raise BuildError(f"the student has no {name}", where=model.config._name_or_path)
            (folder / name).write_bytes(written.read_bytes())


def _write_graphs(fp32: Path, folder: Path, precision: str) -> dict[str, Any]:
    """Move or quantize the fp32 graphs into `folder`; returns what the precision means."""
    for source, target in zip(_graphs(fp32, "fp32"), _graphs(folder, precision), strict=True):
        target.parent.mkdir(exist_ok=True)
        if precision == "fp32":
            for path in sorted(source.parent.glob(f"{source.name}*")):
                path.replace(target.parent / path.name)
    if precision == "fp32":
        return FP32_SCHEME
    console.print("export: quantizing to int8")
    details = {
        graph: quantize_graph(source, target)
        for graph, source, target in zip(
            layout.GRAPHS, _graphs(fp32, "fp32"), _graphs(folder, precision), strict=True
        )
    }
    return {**scheme(), "graphs": details}


def _sign(
    folder: Path, family: str, precision: str, provenance: dict[str, Any], meaning: dict[str, Any]
) -> None:
    write_manifest(
        folder,
        kind=layout.KIND,
        family=family,
        precision=precision,
        suffix=layout.SUFFIXES[precision],
        provenance=provenance,
        quantization=meaning,
    )
