"""What a run leaves: frozen parts bit for bit, a proven merge, verified folders, a student for anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError
from genrecal.core.manifest import verify_manifest
from genrecal.data.llava import read_llava
from genrecal.data.pair import PairReader
from genrecal.models.processors import load_model, load_processor
from genrecal.train.launch import distill
from genrecal.train.settings import RunConfig
from tests.tiny import TinyData, TinyPair
from tests.train.conftest import CARD, Run, environment, folder_hash

STAGES = ("1-recalibrate", "2-distill", "3-finetune")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in load_model(folder).named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_folders_that_a_run_reads_stay_as_they_were(
    runs: dict[str, Run], tiny_pair: TinyPair, pair_hashes: dict[str, str]
) -> None:
    for side, before in pair_hashes.items():
        assert folder_hash(getattr(tiny_pair, side)) == before


def test_stage_1_writes_the_recalibrator_alone(runs: dict[str, Run]) -> None:
    folder = runs["plain"].folder / "stages" / STAGES[0]
    assert {path.name for path in folder.iterdir()} == {
        "recalibrator.safetensors",
        "features.safetensors",
        "manifest.json",
    }
    manifest = verify_manifest(folder, kind="stage")
    recalibrator = sum(
        int(np.prod(entry["shape"])) for name, entry in _header(folder / "recalibrator.safetensors").items()
    )
    assert manifest["trained_parameters"] == recalibrator


def test_stage_2_changes_the_body_alone(runs: dict[str, Run], tiny_pair: TinyPair) -> None:
    stages = runs["plain"].folder / "stages"
    before, after = weights(tiny_pair.student), weights(stages / STAGES[1] / "student")
    moved = changed(before, after)
    projections = {
        name for name in before if name.startswith("model.language_model.layers.") and "_proj.weight" in name
    }
    # Vision encoder, projector, embeddings, head, norms and biases are equal bit by bit.
    assert moved == projections
    one, two = (_header(stages / name / "recalibrator.safetensors") for name in STAGES[:2])
    assert one.keys() == two.keys()
    first, second = ((stages / name / "recalibrator.safetensors").read_bytes() for name in STAGES[:2])
    assert first != second


def test_stage_3_changes_all_but_the_vision_encoder(runs: dict[str, Run], tiny_pair: TinyPair) -> None:
    folder = runs["plain"].folder
    merged, final = weights(folder / "stages" / STAGES[1] / "student"), weights(folder / "student")
    moved = changed(merged, final)
    encoder = {
        name
        for name in final
        if name.startswith("model.visual.") and not name.startswith("model.visual.merger.")
    }
    assert encoder and moved == final.keys() - encoder
    assert not encoder & changed(weights(tiny_pair.student), final)
    assert not (folder / "stages" / STAGES[2] / "recalibrator.safetensors").exists()
    assert folder_hash(folder / "stages" / STAGES[2] / "student") == folder_hash(
        folder / "student", without=CARD
    )


def test_the_merge_is_recorded_and_true(
    runs: dict[str, Run], tiny_pair: TinyPair, tiny_data: TinyData
) -> None:
    folder = runs["plain"].folder / "stages" / STAGES[1]
    recorded = verify_manifest(folder, kind="stage")["merge"]["largest_relative_logit_difference"]
    assert 0 <= recorded < 1e-4
    sample = _student_sample(tiny_pair.student, tiny_data)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(load_model(tiny_pair.student), folder / "adapter")(
            **sample
        ).logits
        merged = load_model(folder / "student")(**sample).logits
        initial = load_model(tiny_pair.student)(**sample).logits
    assert (adapted - merged).abs().max() < 1e-4 * adapted.abs().max()
    assert (adapted - initial).abs().max() > 1e-2 * adapted.abs().max()


@pytest.mark.parametrize("variant", ["plain", "sft"])
def test_manifests_verify_and_nothing_is_left_over(runs: dict[str, Run], variant: str) -> None:
    folder = runs[variant].folder
    manifest = verify_manifest(folder, kind="run")
    assert manifest["config"]["engine"]["precision"] == "fp32" and manifest["versions"]["deepspeed"]
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "preflight.json",
        "stages",
        "student",
        "manifest.json",
    }
    assert not [path for path in folder.rglob(".*")]
    for stage in (folder / "stages").iterdir():
        facts = verify_manifest(stage, kind="stage")
        assert facts["trained_parameters"] > 0 and len(facts["frozen_sha256"]) == 64


def test_a_finished_run_again_does_nothing(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs["plain"].folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    distill(load_config(folder / "config.yaml", RunConfig))
    assert "finished before" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_config_in_the_same_folder_is_refused(runs: dict[str, Run]) -> None:
    folder = runs["plain"].folder
    before = folder_hash(folder)
    other = load_config(folder / "config.yaml", RunConfig, ["seed=1", "lora.rank=2"])
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(seed, lora\)"):
        distill(other)
    assert folder_hash(folder) == before


def test_a_folder_of_something_else_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    config = load_config(runs["plain"].folder / "config.yaml", RunConfig, [f"output={tmp_path}"])
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        distill(config)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


PLAIN_TRANSFORMERS = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("genrecal", "edge", "bench", "cli"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
folder, image, question, answer, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder, use_fast=False)(
    images=[Image.open(image).convert("RGB")], return_tensors="pt")
count = int(images["image_grid_thw"].prod()) // 4
content = [{"type": "image"}, {"type": "text", "text": question}]
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
text = prompt.replace("<|image_pad|>", "<|image_pad|>" * count) + answer + tokenizer.eos_token
ids = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(**ids, **images, use_cache=False).logits
assert "genrecal" not in sys.modules
numpy.savez(out, logits=logits.numpy(), ids=ids["input_ids"].numpy())
"""


def test_the_student_loads_with_plain_transformers(
    runs: dict[str, Run], tiny_data: TinyData, tmp_path: Path
) -> None:
    """In a process that cannot import genrecal: the same ids and the same logits."""
    folder = runs["plain"].folder / "student"
    sample = read_llava(tiny_data.path)[0]
    question = sample.turns[0].text.removeprefix("<image>\n")
    out = tmp_path / "plain.npz"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, folder, sample.images[0], question, sample.answer, out],
        env=environment() | {"PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain, ours = np.load(out), _student_sample(folder, tiny_data)
    assert plain["ids"].tolist() == ours["input_ids"].tolist()
    with torch.no_grad():
        logits = load_model(folder)(**ours).logits.numpy()
    np.testing.assert_allclose(plain["logits"], logits, atol=1e-6)


def _student_sample(folder: Path, data: TinyData) -> dict[str, Any]:
    reader = PairReader(tuple(read_llava(data.path)), student=load_processor(folder), max_tokens=512)
    tokens = reader[0].student
    return {"input_ids": torch.cat([tokens.question_ids, tokens.answer_ids])[None], **tokens.vision}


def _header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    return header
