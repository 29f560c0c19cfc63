"""The peak memory of exporting a student of Qwen2-VL-2B's full size, in a process of its own.

    python -m benchmarks.export_memory run --precision int8

The student has the published sizes and random weights in bf16; its tokenizer is a small one, which changes
no size. Peak is VmHWM of the exporting process: everything that was resident at once, files that are mapped
into memory among it.

    RESULTS/export_memory.json    by precision: sizes, versions, peak, time, and the bar, which is
                                  1.6 x the fp16 weights + 2 GiB
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from genrecal.core.console import console, errors
from genrecal.core.errors import BenchError, GenrecalError
from genrecal.core.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
NAME = "export_memory.json"
CONFIG = Path(__file__).parents[1] / "configs/paper/models/Qwen2-VL-2B-Instruct"
BAR_FACTOR, BAR_EXTRA_BYTES = 1.6, 2 << 30
SHARD_BYTES = 1 << 30
CORPUS = ("what is in the image", "describe the image", "which color is shown", "how many are there") * 8

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def run(
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8 or int4.")] = "fp16",
    model: Annotated[Path, typer.Option(help="Folder with a Qwen2-VL config.json.")] = CONFIG,
    scratch: Annotated[Path | None, typer.Option(help="Where student and build are written.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of export_memory.json.")] = RESULTS,
) -> None:
    """Write the student, export it in a new process, and write what that took."""
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        student = Path(temporary) / "student"
        parameters = write_student(model, student)
        console.print(f"a student of {parameters:,} parameters")
        found = subprocess.run(
            [sys.executable, "-m", "benchmarks.export_memory", "child", str(student), precision],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if found.returncode:
            raise BenchError(f"the export ended with {found.returncode}", where=student)
        measured = json.loads(found.stdout.splitlines()[-1])
        report = read_json(student.parent / "build" / "parity.json")
    fp16_bytes = 2 * parameters
    bar_bytes = int(BAR_FACTOR * fp16_bytes + BAR_EXTRA_BYTES)
    result = {
        "model": model.name,
        "parameters": parameters,
        "fp16_bytes": fp16_bytes,
        "bar_bytes": bar_bytes,
        **measured,
        "peak_over_bar": measured["peak_bytes"] / bar_bytes,
        "parity": {"torch": report["torch"], **report["graphs"]},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
    }
    path = results / NAME
    write_json(path, {**(read_json(path) if path.is_file() else {}), precision: result})
    console.print(
        f"peak {measured['peak_bytes'] / 1e9:.2f} GB of {bar_bytes / 1e9:.2f} GB allowed, "
        f"{measured['seconds']:.0f} s"
    )


@app.command()
def child(student: Path, precision: str) -> None:
    """Export, and print the peak of this process; `run` calls it."""
    start = time.monotonic()
    from genrecal.export.build import export_run

    marks = {"imports": peak_bytes()}
    export_run(student, student.parent / "build", precision=precision, min_agreement=0)
    marks["export"] = peak_bytes()
    size = sum(path.stat().st_size for path in (student.parent / "build" / "onnx").iterdir())
    found: dict[str, Any] = {
        "peak_bytes": marks["export"],
        "imports_bytes": marks["imports"],
        "graphs_bytes": size,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(found))


def peak_bytes() -> int:
    """VmHWM of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def write_student(model: Path, folder: Path) -> int:
    """Write a Qwen2-VL of `model`'s sizes with random bf16 weights, by shards; returns its parameters."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    from genrecal.demo.pair import Qwen2VLShape, write_qwen2_vl
    from genrecal.models.processors import load_processor

    # Tokenizer and settings of a small model, beside a config of full size.
    small = folder.parent / "small"
    shape = Qwen2VLShape(patch=14, min_pixels=56 * 56, max_pixels=28 * 28 * 256)
    write_qwen2_vl(small, CORPUS, shape=shape, seed=0)
    load_processor(small).save_pretrained(folder)
    config, tokens = AutoConfig.from_pretrained(model), AutoConfig.from_pretrained(small)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, name, getattr(tokens, name))
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_bytes((small / "generation_config.json").read_bytes())
    with init_empty_weights(include_buffers=False):
        empty = AutoModelForImageTextToText.from_config(config)
    empty.tie_weights()
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    parameters = 0

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, parameter in empty.named_parameters():
        # As trained models have them: norms about one, products that keep the size of what goes in.
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16)
        if parameter.ndim > 1:
            weight.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        shard[name] = weight
        parameters += weight.numel()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return parameters


if __name__ == "__main__":
    try:
        app()
    except GenrecalError as error:
        errors.print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
