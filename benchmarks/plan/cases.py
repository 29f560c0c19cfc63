"""The pairs and cases that are measured and predicted, and their runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from genrecal.core.config import parse_config
from genrecal.demo.pair import InternVLShape, Qwen2VLShape, write_internvl, write_qwen2_vl
from genrecal.train.settings import RunConfig

RESULTS = Path(__file__).parents[1] / "results" / "plan"
CORPUS = [
    "what is in the picture?",
    "a red circle is left of a blue square",
    "user\nassistant\n0123456789",
] * 8
STEPS, ACCUMULATION = 4, 2
SAMPLES = 8
# Shapes, and the sizes of the embedding matrices: rows beyond the tokenizer's are padding, as in Qwen's own.
PAIRS: dict[str, dict[str, Any]] = {
    "tiny": {
        "teacher": InternVLShape(tile=56, patch=14, vision_hidden=64, vision_heads=2, hidden=128, heads=4),
        "student": Qwen2VLShape(patch=14, vision_hidden=64, hidden=96, heads=4, intermediate=256),
        "rows": {"teacher": 2000, "student": 1500},
    },
    "mid": {
        "teacher": InternVLShape(
            tile=224,
            patch=14,
            vision_hidden=384,
            vision_layers=6,
            vision_heads=6,
            hidden=768,
            layers=8,
            heads=12,
            key_value_heads=4,
            intermediate=2304,
        ),
        "student": Qwen2VLShape(
            patch=14,
            max_pixels=448 * 448,
            vision_hidden=320,
            vision_layers=4,
            vision_heads=5,
            hidden=512,
            layers=6,
            heads=8,
            key_value_heads=2,
            intermediate=1536,
        ),
        "rows": {"teacher": 24000, "student": 16000},
    },
}
BASE = {"zero_stage": 3, "precision": "fp32", "gradient_checkpointing": True, "micro_batch": 2, "ranks": 1}
CASES: dict[str, dict[str, Any]] = {
    f"{pair}-{stage}": {"pair": pair, "stage": stage, **BASE}
    for pair in PAIRS
    for stage in ("recalibrate", "distill", "finetune")
} | {
    "mid-distill-kept": {"pair": "mid", "stage": "distill", **BASE, "gradient_checkpointing": False},
    "mid-finetune-kept": {"pair": "mid", "stage": "finetune", **BASE, "gradient_checkpointing": False},
    "mid-finetune-4": {"pair": "mid", "stage": "finetune", **BASE, "micro_batch": 4},
    "mid-finetune-zero0": {"pair": "mid", "stage": "finetune", **BASE, "zero_stage": 0},
    "tiny-distill-bf16": {"pair": "tiny", "stage": "distill", **BASE, "precision": "bf16"},
    "tiny-finetune-bf16": {"pair": "tiny", "stage": "finetune", **BASE, "precision": "bf16"},
    "tiny-finetune-zero1": {
        "pair": "tiny",
        "stage": "finetune",
        **BASE,
        "zero_stage": 1,
        "precision": "bf16",
    },
    "tiny-finetune-zero2": {
        "pair": "tiny",
        "stage": "finetune",
        **BASE,
        "zero_stage": 2,
        "precision": "bf16",
    },
}


def run_config(case: dict[str, Any], work: Path, output: Path) -> RunConfig:
    """The run of a case."""
    pair = work / case["pair"]
    stage = {"micro_batch": case["micro_batch"], "accumulation": ACCUMULATION}
    content = {
        "student": str(pair / "student"),
        "teacher": str(pair / "teacher"),
        "output": str(output),
        "data": {"sources": [{"path": str(pair / "data.json")}]},
        "engine": {key: case[key] for key in ("zero_stage", "precision", "gradient_checkpointing", "ranks")},
        "stages": {case["stage"]: stage},
    }
    return parse_config(content, RunConfig, where="benchmarks/plan/cases.py")


def write_inputs(name: str, work: Path) -> None:
    """Models and data of a pair below WORK, and the models' config.json below RESULTS."""
    shapes, folder = PAIRS[name], work / name
    if (folder / "data.json").is_file():
        return
    for side, write in (("teacher", write_internvl), ("student", write_qwen2_vl)):
        write(folder / side, CORPUS, shape=shapes[side], seed=0)  # type: ignore[operator]
        config = AutoConfig.from_pretrained(folder / side)
        config.get_text_config().vocab_size = shapes["rows"][side]
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder / side)
        kept = RESULTS / "models" / f"{name}-{side}"
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / side / "config.json", kept / "config.json")
    tile = shapes["teacher"].tile
    Image.effect_noise((2 * tile, tile), 90).convert("RGB").save(folder / "image.png")
    turns = [
        {"from": "human", "value": "<image>\n" + "what is in the picture? " * 4},
        {"from": "gpt", "value": "a red circle is left of a blue square " * 6},
    ]
    rows = [{"id": str(number), "image": "image.png", "conversations": turns} for number in range(SAMPLES)]
    (folder / "data.json").write_text(json.dumps([{**row, "domain": "knowledge"} for row in rows]))
