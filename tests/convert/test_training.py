"""Converted checkpoints train: an NVLM-D teaches an InternVL with InternLM2, three stages under ZeRO-3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from genrecal.models.processors import load_model, load_processor
from tests.convert.conftest import Converted
from tests.tiny import TinyData
from tests.train.conftest import as_one_rank, drive


@pytest.mark.full
def test_nvlm_teaches_internlm2(
    converted_folders: dict[str, Converted], tiny_data: TinyData, tmp_path: Path
) -> None:
    teacher, student = converted_folders["nvlm_d"].folder, converted_folders["internvl2_5_internlm2"].folder
    steps = {"micro_batch": 2, "accumulation": 4}
    config = {
        "method": "genrecal",
        "teacher": str(teacher),
        "student": str(student),
        "output": str(tmp_path / "run"),
        "data": {"sources": [{"path": str(tiny_data.path)}]},
        "lora": {"rank": 4, "alpha": 4},
        "engine": {"zero_stage": 3, "precision": "fp32"},
        "preflight": {"mode": "warn", "samples": 4},
        "stages": dict.fromkeys(("recalibrate", "distill", "finetune"), steps),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    done = drive([path], as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"recalibrate", "distill", "finetune"}
    trained = tmp_path / "run" / "student"
    assert type(load_processor(trained)).__name__ == "InternVLProcessor"
    assert load_model(trained).config.text_config.model_type == "llama"
    (weights,) = trained.glob("*.safetensors")
    before = {
        name: part for shard in student.glob("*.safetensors") for name, part in load_file(shard).items()
    }
    after = load_file(weights)
    assert after.keys() == before.keys()
    changed = {name for name in after if not after[name].float().equal(before[name].float())}
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
