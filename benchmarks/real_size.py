"""Stage 2 of a pair of real size: utilisation, tokens and memory, beside what the plan says of them.

    python -m benchmarks.real_size WORK                the paper's smallest pair's shapes, on a CUDA device
    python -m benchmarks.real_size WORK --pair mid     the plan's pair of 140M, on any machine

Weights are random, lengths are not: images and texts of many sizes, in micro-batches of neighbours in length
as training makes them. FLOPs are counted sample by sample, so time that padding takes is booked for nothing.

    RESULTS/real_size-PAIR.json    settings, sizes, versions, seconds of each pass, and both sides' figures
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.plan.cases import CORPUS, PAIRS, write_inputs
from benchmarks.plan.driver import Driver
from genrecal.core.config import parse_config
from genrecal.core.console import console
from genrecal.core.files import write_json
from genrecal.core.manifest import installed_versions
from genrecal.data.batch import PairedBatch
from genrecal.data.mixture import read_mixture
from genrecal.data.pair import PairReader
from genrecal.demo.pair import InternVLShape, Qwen2VLShape, write_internvl, write_qwen2_vl
from genrecal.models.processors import load_processor
from genrecal.plan.gpus import GPUS
from genrecal.plan.shapes import read_config
from genrecal.plan.stage import StageSketch
from genrecal.plan.workload import Batches, Workload
from genrecal.train.engine import DTYPES, device, join_ranks
from genrecal.train.feed import padding
from genrecal.train.settings import RunConfig

RESULTS = Path(__file__).parent / "results"
SHAPES = Path(__file__).parents[1] / "configs" / "paper" / "models"
# The language model of the teacher has 7 billion parameters, the student's 1.5.
PUBLISHED = {"teacher": "InternVL2_5-8B", "student": "Qwen2-VL-2B-Instruct"}
STAGE = "distill"
# Width and height of the images; None: text alone.
IMAGES = ((448, 448), (896, 448), (640, 960), (1344, 896), None)


def write_published(work: Path) -> Path:
    """The published shapes with random weights, tokenizers of their own, and the processors' real sizes."""
    folder = work / "real"
    internvl = InternVLShape(tile=448, patch=14, max_tiles=12, vision_layers=1, layers=1)
    qwen2_vl = Qwen2VLShape(patch=14, max_pixels=1280 * 28 * 28, vision_layers=1, layers=1)
    small = {"teacher": (write_internvl, internvl), "student": (write_qwen2_vl, qwen2_vl)}
    for side, (write, shape) in small.items():
        if (folder / side / "published").is_file():
            continue
        write(folder / side, CORPUS, shape=shape, seed=0)  # type: ignore[operator]
        written, config = AutoConfig.from_pretrained(folder / side), read_config(SHAPES / PUBLISHED[side])
        for name in [name for name in vars(written) if name.endswith("_token_id")]:
            setattr(config, name, getattr(written, name))
        torch.manual_seed(0)
        with torch.device(device()):
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        model.generation_config = AutoModelForImageTextToText.from_pretrained(folder / side).generation_config
        model.save_pretrained(folder / side)
        (folder / side / "published").touch()
    return folder


def write_samples(folder: Path, count: int) -> Path:
    """Conversations of many lengths about images of many sizes; a function of the code here."""
    draw = np.random.default_rng(0)
    path, rows = folder / "many.json", []
    for number in range(count):
        size = IMAGES[number % len(IMAGES)]
        question = "what is in the picture? " * int(draw.integers(2, 30))
        if size is not None:
            name = f"noise-{size[0]}x{size[1]}.png"
            if not (folder / name).is_file():
                Image.effect_noise(size, 90).convert("RGB").save(folder / name)
            question = f"<image>\n{question}"
        answer = "a red circle is left of a blue square " * int(draw.integers(1, 40))
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        image = {} if size is None else {"image": name}
        rows.append({"id": str(number), **image, "domain": "knowledge", "conversations": turns})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def run_config(folder: Path, data: Path, arguments: argparse.Namespace) -> RunConfig:
    """The run whose second stage is measured."""
    content = {
        "student": str(folder / "student"),
        "teacher": str(folder / "teacher"),
        "output": str(folder / "run"),
        "data": {"sources": [{"path": str(data)}], "max_tokens": 8192},
        "engine": {"zero_stage": arguments.zero_stage, "precision": arguments.precision},
        "stages": {STAGE: {"micro_batch": arguments.micro_batch, "accumulation": arguments.accumulation}},
    }
    return parse_config(content, RunConfig, where="benchmarks/real_size.py")


def read_batches(config: RunConfig) -> tuple[list[PairedBatch], list[PairedBatch]]:
    """Micro-batches of neighbours in length, and the same samples each alone."""
    reader = PairReader(
        read_mixture(config.data),
        student=load_processor(config.student),
        teachers=[load_processor(source.path) for source in config.sources],
        max_tokens=config.data.max_tokens,
    )
    pad, size = padding(reader), config.stage(STAGE).micro_batch
    rows = sorted(map(reader.__getitem__, range(len(reader))), key=lambda row: len(row.student.question_ids))
    return [pad(rows[first : first + size]) for first in range(0, len(rows), size)], [
        pad([row]) for row in rows
    ]


def measure(config: RunConfig, batches: Sequence[PairedBatch], passes: int) -> dict[str, Any]:
    """Seconds of each pass over all micro-batches, and the most memory that was allocated."""
    dtype, cuda = DTYPES[config.engine.precision], device().type == "cuda"
    given = [batch.to(device(), dtype) for batch in batches]
    driver = Driver(config, STAGE, batch=given[0])
    seconds = []
    for number in range(passes + 1):
        started = time.perf_counter()
        for batch in given:
            driver.engine.backward(driver.engine(batch, driver.scales, None).total)
            driver.engine.step()
        if cuda:
            torch.cuda.synchronize()
        if number:  # the first pass makes AdamW's moments, and kernels are chosen
            seconds.append(time.perf_counter() - started)
    tokens = sum(int(batch.student.attention_mask_BS.sum()) for batch in batches)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return {"seconds": seconds, "tokens": tokens, "peak_bytes": peak}


def predict(
    config: RunConfig, batches: Sequence[PairedBatch], alone: Sequence[PairedBatch]
) -> dict[str, float]:
    """What `genrecal plan` says: FLOPs of a pass, sample by sample, and memory at the longest micro-batch."""
    models = [read_config(config.student), *(read_config(source.path) for source in config.sources)]
    cpu, dtype = torch.device("cpu"), DTYPES[config.engine.precision]
    longest = max(batches, key=lambda batch: batch.student.input_ids_BS.numel()).to(cpu, dtype)
    singles = Batches(typical=tuple(batch.to(cpu, dtype) for batch in alone), longest=longest)
    settings = config.stage(STAGE)

    def sketch(micro_batch: int, read: Batches) -> StageSketch:
        workload = Workload(samples={STAGE: len(alone)}, batches=lambda *_: read, source="these samples")
        stage = settings.model_copy(update={"micro_batch": micro_batch})
        sized = config.model_copy(update={"stages": config.stages | {STAGE: stage}})
        return StageSketch(sized, STAGE, models, workload)

    whole = sketch(settings.micro_batch, Batches(typical=(longest,), longest=longest))
    return {
        "flops": len(alone) * sum(sketch(1, singles).flops_of_sample().values()),
        "peak_bytes": whole.memory(config.engine, micro_batch=settings.micro_batch, ranks=1).peak,
        "parameters": whole.parameters.total,
    }


def peak_flops() -> tuple[float, str]:
    """Of this device in a second, and where the figure comes from."""
    if device().type == "cuda":
        name = torch.cuda.get_device_name().lower()
        for known, gpu in GPUS.items():
            if known.partition("-")[0] in name:
                return gpu.tflops * 1e12, gpu.sheet
    size = 8192 if device().type == "cuda" else 1024
    left, right = torch.randn(2, size, size, device=device(), dtype=torch.float32)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # a figure of it: all of it is done
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds), f"a product of {size} x {size} in float32, the fastest of seven"


def figures(measured: dict[str, Any], predicted: dict[str, float], peak: float) -> dict[str, float | None]:
    """Of the median pass."""
    seconds, memory = statistics.median(measured["seconds"]), measured["peak_bytes"]
    return {
        "utilisation": predicted["flops"] / seconds / peak,
        "student_tokens_per_s": measured["tokens"] / seconds,
        "peak_gib": None if memory is None else memory / 2**30,
        "predicted_peak_gib": predicted["peak_bytes"] / 2**30,
        "predicted_over_measured": None if memory is None else predicted["peak_bytes"] / memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder for models and data; 20 GB for the real pair")
    parser.add_argument("--pair", choices=("real", *PAIRS), default="real")
    parser.add_argument("--samples", type=int, default=40, help="a multiple of the micro-batch")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--zero-stage", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # any free one
    join_ranks()
    if arguments.pair == "real":
        folder = write_published(arguments.work)
    else:
        write_inputs(arguments.pair, arguments.work)
        folder = arguments.work / arguments.pair
    config = run_config(folder, write_samples(folder, arguments.samples), arguments)
    batches, alone = read_batches(config)
    predicted = predict(config, batches, alone)
    measured = measure(config, batches, arguments.passes)
    peak, source = peak_flops()
    found = figures(measured, predicted, peak)
    cuda = device().type == "cuda"
    record = {
        "command": f"python -m benchmarks.real_size WORK --pair {arguments.pair}",
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "peak_flops": peak,
        "peak_from": source,
        "settings": {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)},
        "versions": installed_versions(),
        "measured": measured,
        "predicted": predicted,
        "figures": found,
    }
    write_json(arguments.results / f"real_size-{arguments.pair}.json", record)
    for name, value in found.items():
        console.print(f"{name}: {'not measured on a CPU' if value is None else f'{value:,.3f}'}")


if __name__ == "__main__":
    main()
