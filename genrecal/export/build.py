"""A student as a build: a folder that answers questions about images where there is no torch.

    student/ -> fp32 graphs -> gate: are they the checkpoint? -+-> build
                                                               |
         fp16, int8 or int4 graphs -> measured in the same way +-> build

What a precision means on a target is data (`quantize/schemes.py`), and what calibrates comes from the run's
training data (`calibration.py`). Before a build appears, its target must be able to run every node of it
(`linter.py`), and different images must give different answers (`image_dependence.py`).

Structure and weights go separate ways (`onnx_graphs.py`), and the gate (`gate.py`) opens one graph at a time
where a student is large, so the memory of an export is bounded. The layout belongs to `edge.build`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from edge import build as layout
from genrecal.core import card
from genrecal.core.console import console
from genrecal.core.errors import BuildError
from genrecal.core.files import atomic_folder, read_json, write_json
from genrecal.core.manifest import NAME as MANIFEST
from genrecal.core.manifest import write_manifest
from genrecal.data.source import named_sources
from genrecal.export import gate, image_dependence, linter, parity
from genrecal.export.adapter import merge_adapter
from genrecal.export.calibration import queries_of, training_queries
from genrecal.export.clients import OURS, adapt, require_client
from genrecal.export.initializers import initializer_bytes
from genrecal.export.onnx_graphs import export_graphs
from genrecal.export.precision import Choice, print_costs, vision_form, write_graphs
from genrecal.export.quantize.schemes import (
    Scheme,
    files_of,
    is_calibrated,
    needs_float16,
    scheme_of,
)
from genrecal.export.reference import require_float16
from genrecal.export.student import family_of, find_student
from genrecal.models.processors import load_processor

PRECISIONS = layout.PRECISIONS
CPU = "cpu"


def export_run(
    path: Path,
    output: Path,
    *,
    precision: str = "int8",
    target: str = CPU,
    client: str = OURS,
    adapter: Path | None = None,
    calibration: Sequence[Path] = (),
    min_agreement: float | None = None,
    keep_fp16: Collection[str] | str = (),
    parity_prompts: Sequence[parity.Query] | None = None,
) -> Path:
    """Export the student that `path` names, a run folder or a model folder; see `export_student`.

    Args:
        path: the run, or the student.
        output: the build folder.
        precision: one of PRECISIONS.
        target: one of `edge.build.TARGETS`, what the build is made for.
        client: what runs the build.
        adapter: a LoRA adapter of that student, which is merged first and proven; see `merge_adapter`.
        calibration: training data in any form that `distill` reads, or YAML configs for theirs; empty: the
            run's own. Never a test set.
        min_agreement: see `export_student`.
        keep_fp16: see `export_student`.
        parity_prompts: queries of the parity report and of the merge's proof.

    Raises:
        ModelError: `path` names no student that can be exported, or the adapter is not its own.
        DataError: the calibration data cannot be read.
        BuildError: the export failed, its graphs are not the checkpoint's, or `output` holds something else.
    """
    student = find_student(path)
    training = queries_of(named_sources(calibration)) if calibration else training_queries(path)
    if parity_prompts is None:
        parity_prompts = [*parity.default_queries(), *(training.report if training else ())]
    with contextlib.ExitStack() as stack:
        folder, provenance = student.folder, student.provenance
        if adapter is not None:
            _check_output(output)
            output.parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.merged.")
            folder = Path(stack.enter_context(scratch)) / student.folder.resolve().name
            console.print(f"export: merging {adapter}")
            merge = merge_adapter(student.folder, adapter, folder, parity_prompts)
            provenance = {**provenance, "adapter": asdict(merge)}
        return export_student(
            folder,
            output,
            precision=precision,
            target=target,
            client=client,
            provenance=provenance,
            min_agreement=min_agreement,
            keep_fp16=keep_fp16,
            parity_prompts=parity_prompts,
            calibration=training.calibration if training else (),
        )


def export_student(
    student_folder: Path,
    output: Path,
    *,
    precision: str,
    provenance: dict[str, Any],
    target: str = CPU,
    client: str = OURS,
    min_agreement: float | None = None,
    keep_fp16: Collection[str] | str = (),
    parity_prompts: Sequence[parity.Query] | None = None,
    calibration: Sequence[parity.Query] = (),
) -> Path:
    """Export a student to a build folder.

    The fp32 graphs always pass the gate against torch first; other builds are compared in the same way.

    Args:
        student_folder: a plain Hugging Face folder of a supported family.
        output: the build folder; an older build there is replaced whole, at the end.
        precision: one of PRECISIONS.
        provenance: what the manifest says of the student's origin; `find_student` gives it.
        target: one of `edge.build.TARGETS`, what the build is made for.
        client: what runs the build, one of `clients.CLIENTS`.
        min_agreement: share of answer tokens whose likeliest token must be the checkpoint's;
            `gate.MIN_AGREEMENT` of the precision if None.
        keep_fp16: weights of the decoder that stay in float16 where others are quantized, by their names in
            the checkpoint; `sensitivity.AUTO` for those that are worth it.
        parity_prompts: queries (image, question) of the parity report; `parity.default_queries` if None.
        calibration: queries of the student's training data, for what needs calibration; never of a test set.

    Returns:
        `output`.

    Raises:
        ModelError: the folder holds no student that can be exported.
        BuildError: the export failed, its graphs are not the checkpoint's, an activation does not fit
            float16, the target cannot run a node, the build agrees too little or does not see, or `output`
            holds something else.
    """
    scheme = scheme_of(precision, target)
    _check_output(output)
    family = family_of(student_folder)
    require_client(client, family)
    queries = parity.default_queries() if parity_prompts is None else parity_prompts
    processor = load_processor(student_folder)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.fp32.") as scratch:
        fp32 = Path(scratch)
        console.print(f"export: tracing {len(layout.GRAPHS)} graphs of {student_folder}")
        form = vision_form(target)
        graphs = export_graphs(student_folder, fp32 / "onnx", vision_form=form)
        _write_settings(student_folder, processor, fp32)
        unquantized = scheme_of("fp32", target)
        _sign(fp32, family, "fp32", target, provenance, unquantized, {})
        console.print("export: comparing them with torch")
        expected = gate.expect(student_folder, processor, queries)
        report = {"fp32": gate.compare(expected, fp32, graphs)}
        if precision == "fp32":
            gate.print_report(report)
        gate.require_same(report["fp32"], where=student_folder)

        with atomic_folder(output) as folder:
            _write_settings(student_folder, processor, folder)
            if needs_float16(scheme):
                require_float16(expected.range, where=student_folder)
            references = (
                gate.calibrate(student_folder, processor, calibration)
                if calibration and is_calibrated(scheme)
                else []
            )
            choice = Choice(calibration=references, asked=expected.references, keep=keep_fp16)
            details = write_graphs(student_folder, fp32, folder, scheme, form, choice)
            meaning = {"name": precision, "target": target, "graphs": details}
            graphs = {graph: folder / name for graph, name in files_of(scheme).items()}
            linter.require_placed(graphs, target, where=student_folder)
            _sign(folder, family, precision, target, provenance, scheme, meaning)
            if precision != "fp32":
                report[precision] = gate.compare(expected, folder, graphs)
                gate.print_report(report)
                print_costs(details)
                minimum = gate.MIN_AGREEMENT.get(precision, 0.0) if min_agreement is None else min_agreement
                gate.require_agreement(report[precision], minimum, where=student_folder)
            console.print("export: asking about different images")
            whole = expected.answers is not None
            seen = (
                image_dependence.measure_build(folder)
                if whole
                else image_dependence.measure_graphs(student_folder, processor, graphs)
            )
            image_dependence.require_seen(seen, where=student_folder)
            adapt(folder, files_of(scheme), client=client, family=family)
            write_json(
                folder / layout.PARITY, {**gate.as_json(report, expected), "image_dependence": asdict(seen)}
            )
            size = sum(initializer_bytes(path) for path in graphs.values())
            card.write_build_card(
                folder, provenance=provenance, precision=precision, weights_bytes=size, quantization=meaning
            )
            _sign(folder, family, precision, target, provenance, scheme, meaning, client=client)
    console.print(f"build: {output} ({precision} for {target}, weights {size / 1e6:.2f} MB)")
    return output


def _check_output(output: Path) -> None:
    """An export replaces `output` whole, so it must be new, empty or a build."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    kind = read_json(output / MANIFEST).get("kind") if (output / MANIFEST).is_file() else None
    if kind != layout.KIND:
        raise BuildError("exists and is no build", where=output, fix="Give another output folder")


def _write_settings(student: Path, processor: Any, folder: Path) -> None:
    """Config, generation, preprocessing and tokenizer files, as the installed transformers writes them.

    Published folders differ with their age (flat configs, the chat template inside a JSON file); written
    anew, they are all alike, and the runtime needs to know one layout alone.
    """
    config = AutoConfig.from_pretrained(student)
    generation = (
        GenerationConfig.from_pretrained(student)
        if (student / layout.GENERATION_CONFIG).is_file()
        else GenerationConfig.from_model_config(config)
    )
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        generation.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for name in layout.SETTINGS_FILES:
            written = Path(scratch) / name
            if not written.is_file():
                raise BuildError(f"the student has no {name}", where=student)
            (folder / name).write_bytes(written.read_bytes())


def _sign(
    folder: Path,
    family: str,
    precision: str,
    target: str,
    provenance: dict[str, Any],
    scheme: Scheme,
    meaning: dict[str, Any],
    *,
    client: str = OURS,
) -> None:
    write_manifest(
        folder,
        kind=layout.KIND,
        family=family,
        precision=precision,
        target=target,
        client=client,
        graphs=files_of(scheme),
        provenance=provenance,
        quantization=meaning,
    )
