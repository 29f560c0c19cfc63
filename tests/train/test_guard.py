"""A step that is not finite is taken by no rank; one sample breaks the student, one of two ranks has it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genrecal.core.errors import TrainError
from genrecal.models.processors import load_model, load_processor
from tests.tiny import TinyData, TinyPair
from tests.train.conftest import WriteConfig, drive, environment

SIGN = "§"  # in the question of one sample alone
BROKEN = "tiny-6"


def broken(folder: Path, source: Path, value: float) -> Path:
    """The student with a word embedding of nothing but `value`; its head is not tied to it."""
    shutil.copytree(source, folder)
    model = load_model(folder)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    first, *_ = load_processor(folder).tokenizer(SIGN, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[first] = value
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def undefined(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its loss is not finite."""
    return broken(tmp_path_factory.mktemp("undefined") / "student", tiny_pair.student, math.nan)


@pytest.fixture(scope="module")
def overflowing(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RMS norm makes zeros of what overflows when it is squared: the loss is finite, its gradient is not."""
    return broken(tmp_path_factory.mktemp("overflowing") / "student", tiny_pair.student, 3e38)


@pytest.fixture(scope="module")
def data(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked") / "data"
    shutil.copytree(tiny_data.path.parent, folder)
    rows = json.loads((folder / "data.json").read_text())
    row = next(row for row in rows if row["id"] == BROKEN)
    row["conversations"][0]["value"] += SIGN
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


def settings(student: Path, zero_stage: int, **engine: object) -> dict[str, object]:
    return {
        "student": str(student),
        "engine": {"zero_stage": zero_stage, **engine},
        "stages": {"distill": {"epochs": 1.0}},
    }


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.full), 2])
def test_every_rank_stops_before_the_step_and_the_sample_is_named(
    write_config: WriteConfig, undefined: Path, data: Path, ranks: int
) -> None:
    path = write_config(
        f"stopped_{ranks}",
        data=data,
        ranks=ranks,
        micro_batch=2,
        accumulation=4 // ranks,
        changes=settings(undefined, 3),
    )
    done = drive([path], environment())
    assert done.returncode == TrainError.exit_code, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "the loss is not finite" in said[0] and BROKEN in said[0]
    rows = [json.loads(line) for line in (path.with_suffix("") / "metrics.jsonl").read_text().splitlines()]
    step = int(said[0].split(" step ")[1].split(":")[0])
    assert [row["step"] for row in rows] == list(range(step))


@pytest.mark.full
@pytest.mark.parametrize("zero_stage", range(4))
def test_such_steps_are_skipped_within_a_budget(
    write_config: WriteConfig, overflowing: Path, data: Path, zero_stage: int
) -> None:
    changes = settings(overflowing, zero_stage, nonfinite="skip", max_skipped=1)
    path = write_config(f"skipped_{zero_stage}", data=data, changes=changes)
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    folder = path.with_suffix("")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    skipped = [row for row in rows if "skipped" in row]
    # Nothing is sent back through the student before stage 2.
    assert [row["stage"] for row in skipped] == ["distill", "finetune"]
    assert all(BROKEN in row["skipped"] for row in skipped)
    weights = load_file(folder / "student" / "model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    before = load_file(overflowing / "model.safetensors")
    assert any(not torch.equal(weight, before[name]) for name, weight in weights.items())


@pytest.mark.full
def test_more_than_the_budget_stops_the_run(write_config: WriteConfig, overflowing: Path, data: Path) -> None:
    changes = settings(overflowing, 2, nonfinite="skip", max_skipped=0)
    path = write_config("over_budget", data=data, changes=changes)
    done = drive([path], environment())
    assert done.returncode == TrainError.exit_code
    assert "the gradient is not finite" in done.stderr and "max_skipped is 0" in done.stderr
