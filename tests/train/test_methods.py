"""Every method through the engine, from config to student."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from genrecal.core.manifest import read_manifest, verify_manifest
from genrecal.data.llava import read_llava
from genrecal.models.families import family_of, segment_of
from genrecal.models.processors import load_model, load_processor
from genrecal.train.label_store import Labels
from genrecal.train.stages import METHODS, STAGES
from tests.kin import Kin
from tests.tiny import TinyData, TinyPair
from tests.train.conftest import Run, WriteConfig, assert_same_steps, drive, environment, stage_folder
from tests.train.method_runs import SAME, SAMPLES, SHORT, merged


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_to_a_student(method_runs: dict[str, Run], method: str, kin: Kin) -> None:
    run, stages = method_runs[method], METHODS[method].stages
    verify_manifest(run.folder, kind="run")
    assert [row["stage"] for row in run.metrics if row["step"] == 0] == list(stages)
    for row in run.metrics:
        stage = STAGES[row["stage"]]
        followed = {"sft"} | ({"teacher_ar"} if stage.recalibrates else set())
        assert set(row["terms"]) == {*stage.terms} | followed
        assert all(math.isfinite(value) and value >= -1e-4 for value in row["terms"].values())
        weights = {term: stage.weights.get(term, 1.0) for term in stage.terms}
        assert row["loss"] == pytest.approx(
            sum(weight * row["terms"][term] for term, weight in weights.items())
        )
        assert row["steps"] == 2
    student = load_model(run.folder / "student")
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())


@pytest.mark.parametrize(("one", "other"), SAME.items())
def test_one_trajectory(method_runs: dict[str, Run], one: str, other: str) -> None:
    """ZeRO-0 against ZeRO-3, two of them with activations recomputed."""
    assert_same_steps(method_runs[one], method_runs[other])


@pytest.mark.parametrize("name", ["minillm", "distillm", "llava-kd", "uld", "gold", "minillm-answers"])
def test_each_stage_moves_what_it_trains(method_runs: dict[str, Run], name: str) -> None:
    run = method_runs[name]
    before = load_model(Path(read_manifest(run.folder, kind="run")["config"]["student"]))
    family = family_of(before.config)
    parts = {
        "student_lora": {"body"},
        "student_projector": {"vision_projector"},
        "student_full": {"vision_projector", "embedding", "body", "head"},
    }
    for number, stage in enumerate(METHODS[_method(run)].stages, start=1):
        folder = stage_folder(run, number)
        after = load_model(folder / "student")
        old = dict(before.named_parameters())
        moved = {key for key, value in after.named_parameters() if not torch.equal(value, old[key])}
        (trains,) = STAGES[stage].trains
        tied = "lm_head.weight" not in old
        assert {segment_of(key, family) for key in moved} == parts[trains] - ({"head"} if tied else set())
        assert not list(folder.glob("recalibrator*")) and not (folder / "features.safetensors").exists()
        before = after


def test_equal_tokenizers_distil_answers_alone(method_runs: dict[str, Run]) -> None:
    """LLaVA-KD's image losses are not there; reverse KL is taken at the tokens of the student's own CE."""
    for row in method_runs["llava-kd-answers"].metrics:
        assert set(row["terms"]) == {"sft"} | (set() if row["stage"] == "kd-sft" else {"response_kl"})
    answers, whole = (method_runs[name].metrics[0] for name in ("minillm-answers", "minillm"))
    assert answers["counts"]["positions"] == answers["counts"]["student_tokens"]
    assert whole["counts"]["positions"] > 2 * whole["counts"]["student_tokens"]


@pytest.mark.parametrize("name", ["seqkd", "genrecal"])
def test_the_teachers_own_answers_are_learned(
    method_runs: dict[str, Run], tiny_pair: TinyPair, method_data: TinyData, name: str
) -> None:
    """Two steps are one pass over the data: all answers of the labels, in tokens."""
    run, samples = method_runs[name], read_llava(method_data.path)
    labels = Labels(run.folder / "labels")
    answers = [labels.answer(sample) or sample.answer for sample in samples]
    assert sum(answer != sample.answer for answer, sample in zip(answers, samples, strict=True)) > SAMPLES / 2
    for key, side in (("student_tokens", tiny_pair.student), ("aligned_tokens", tiny_pair.teacher)):
        tokenizer = load_processor(side).tokenizer
        total = sum(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in answers)
        first = run.steps(METHODS[name].stages[0])
        if key in first[0]["counts"]:
            assert sum(row["counts"][key] for row in first) == total
    # The two asked the same teacher the same questions.
    tables = [
        (method_runs[one].folder / "labels" / "answers.bin").read_bytes() for one in ("seqkd", "genrecal")
    ]
    assert tables[0] == tables[1]


def test_sequence_level_distillation_is_sft_on_other_answers(method_runs: dict[str, Run]) -> None:
    for own, given in zip(method_runs["seqkd"].metrics, method_runs["sft"].metrics, strict=True):
        assert (own["stage"], own["step"], set(own["terms"])) == (given["stage"], given["step"], {"sft"})
    assert method_runs["seqkd"].metrics[0]["loss"] != method_runs["sft"].metrics[0]["loss"]


@pytest.mark.full
def test_two_ranks_answer_as_one(
    method_runs: dict[str, Run], write_config: WriteConfig, method_data: TinyData, tiny_pair: TinyPair
) -> None:
    """Under ZeRO-3; all that the teacher teaches falls to one rank, and the other generates along."""
    teacher = {"path": str(tiny_pair.teacher), "domains": ["knowledge"]}
    path = write_config(
        "methods-labels",
        method="sft",
        data=method_data.path,
        changes=merged(SHORT, {"labels": "teacher", "teacher": None, "teachers": [teacher]}),
        ranks=2,
        micro_batch=2,
        accumulation=1,
    )
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    samples = read_llava(method_data.path)
    taught = {index for index, sample in enumerate(samples) if sample.domain == "knowledge"}
    assert taught and not any(index % 2 for index in taught)
    found, alone = Labels(path.with_suffix("") / "labels"), Labels(method_runs["seqkd"].folder / "labels")
    for index, sample in enumerate(samples):
        assert found.answer(sample) == (alone.answer(sample) if index in taught else "")


def _method(run: Run) -> str:
    return str(read_manifest(run.folder, kind="run")["config"]["method"])
