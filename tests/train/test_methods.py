"""Every method through the engine, from config to student, and what its options leave on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genrecal.core.manifest import read_manifest, verify_manifest
from genrecal.data.llava import read_llava
from genrecal.models.families import family_of, segment_of
from genrecal.models.processors import load_model, load_processor
from genrecal.train.labels import Labels
from genrecal.train.stages import METHODS, STAGES
from tests.kin import Kin
from tests.tiny import TinyData, TinyPair, write_data
from tests.train.conftest import Run, WriteConfig, as_one_rank, drive, environment, merged

# Two steps of four.
SAMPLES = 8
SHORT = {
    "stages": {"distill": {"epochs": 1.0}},
    "relabel": {"max_new_tokens": 4, "batch": 3},
    "engine": {"feature_samples": 3},
}
# Every option that leads away from the paper's form; the Recalibrator frozen in stage 2.
OPTIONS: dict[str, Any] = {
    "recalibrator": {
        "answer_input": "aligned",
        "layers": [0.5, 1.0],
        "answer_dropout": 0.3,
        "answer_delay": 1,
        "question_projector": "separate",
        "init": "student",
        "norm": "rmsnorm",
    },
    "objective": {"first_token": False, "recalibrator_in_distill": "freeze", "regularize_in_distill": True},
    "stages": {"distill": {"weights": {"ar": 0.0, "reg_kl": 0.5}}},
    "engine": {"feature_samples": 5},
}
ROUTES = (("knowledge", "general_vqa"), ("general_vqa", "science_math"))
# The same trajectory however it is computed.
SAME = {
    "minillm": ("minillm-zero_3",),
    "llava-kd": ("llava-kd-zero_3",),
    "gold": ("gold-zero_3",),
    "aligned": ("aligned-zero_3",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_data(tmp_path_factory.mktemp("methods") / "data", samples=SAMPLES)


@pytest.fixture(scope="module")
def teachers(tiny_pair: TinyPair, kin: Kin) -> dict[str, Any]:
    """Two teachers with a domain in common, one that only one has, and one that none has."""
    return {
        "teacher": None,
        "teachers": [
            {"path": str(tiny_pair.teacher), "domains": list(ROUTES[0])},
            {"path": str(kin.twin), "weight": 0.5, "domains": list(ROUTES[1])},
        ],
    }


@pytest.fixture(scope="module")
def finished(write_config: WriteConfig, data: TinyData, kin: Kin, teachers: dict[str, Any]) -> dict[str, Run]:
    """Each method on a pair that it serves, in one process; and what must not change its trajectory."""
    twin, tiles = {"student": str(kin.twin)}, {"student": str(kin.tiles)}
    aligned = merged(OPTIONS, teachers)
    several = several_options(teachers)
    configs: dict[str, Path] = {}

    def add(name: str, changes: dict[str, Any], *, method: str | None = None, **engine: Any) -> None:
        configs[name] = write_config(
            f"methods-{name}",
            method=method or name,
            data=data.path,
            changes=merged(SHORT, changes),
            **{"accumulation": 1, "zero_stage": 0} | engine,
        )

    add("genrecal", {"labels": "teacher"})
    add("genrecal-no-reg", {})
    add("minillm", twin)
    add("minillm-zero_3", twin, method="minillm", zero_stage=3)
    add("minillm-answers", tiles | {"answer_only": True}, method="minillm")
    add("distillm", twin, zero_stage=2, gradient_checkpointing=True)
    add("llava-kd", twin)
    add("llava-kd-zero_3", twin, method="llava-kd", zero_stage=3, gradient_checkpointing=True)
    add("llava-kd-answers", tiles | {"answer_only": True}, method="llava-kd")
    add("sft", {})
    add("seqkd", {})
    add("uld", {})
    add("gold", {})
    add("gold-zero_3", {}, method="gold", zero_stage=3, gradient_checkpointing=True)
    add("finetune", {})
    add("dropping", aligned, method="genrecal")
    add("aligned", several, method="genrecal")
    add("aligned-zero_3", several, method="genrecal", zero_stage=3, gradient_checkpointing=True)
    done = drive(list(configs.values()), as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Run(folder=path.with_suffix(""), printed=done.stdout) for name, path in configs.items()}


@pytest.fixture(scope="module", params=[0, pytest.param(3, marks=pytest.mark.full)])
def two_ranks(
    write_config: WriteConfig, data: TinyData, teachers: dict[str, Any], request: pytest.FixtureRequest
) -> Run:
    """As `aligned`, in two processes; at times one of them has no sample for one of the teachers."""
    path = write_config(
        f"methods-two_ranks-zero_{request.param}",
        data=data.path,
        changes=merged(SHORT, several_options(teachers)),
        ranks=2,
        micro_batch=2,
        accumulation=1,
        zero_stage=request.param,
    )
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(folder=path.with_suffix(""), printed=done.stdout)


def several_options(teachers: dict[str, Any]) -> dict[str, Any]:
    """All options but the one that draws at random, which two ranks draw differently."""
    return merged(merged(OPTIONS, teachers), {"recalibrator": {"answer_dropout": 0.0}})


def stage_folder(run: Run, number: int) -> Path:
    (folder,) = (run.folder / "stages").glob(f"{number}-*")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_to_a_student(finished: dict[str, Run], method: str, kin: Kin) -> None:
    run, stages = finished[method], METHODS[method].stages
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


@pytest.mark.parametrize(("one", "other"), [(one, other) for one, others in SAME.items() for other in others])
def test_one_trajectory(finished: dict[str, Run], one: str, other: str) -> None:
    assert_same_trajectory(finished[one], finished[other])


def assert_same_trajectory(one: Run, other: Run) -> None:
    mine, theirs = one.metrics, other.metrics
    assert len(mine) == len(theirs) >= 4
    for row, same in zip(mine, theirs, strict=True):
        assert (row["stage"], row["step"], row["counts"]) == (same["stage"], same["step"], same["counts"])
        assert row["loss"] == pytest.approx(same["loss"], abs=1e-4)
        assert row["terms"] == pytest.approx(same["terms"], abs=1e-4)
        if None not in (row["grad_norm"], same["grad_norm"]):
            assert row["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-3)
    assert mine[0]["loss"] != pytest.approx(mine[1]["loss"], abs=1e-2)  # it moves


@pytest.mark.parametrize("name", ["minillm", "distillm", "llava-kd", "uld", "gold", "minillm-answers"])
def test_each_stage_moves_what_it_trains(finished: dict[str, Run], name: str) -> None:
    run = finished[name]
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


def test_equal_tokenizers_distil_answers_alone(finished: dict[str, Run]) -> None:
    """LLaVA-KD's image losses are not there; reverse KL is taken at the tokens of the student's own CE."""
    for row in finished["llava-kd-answers"].metrics:
        assert set(row["terms"]) == {"sft"} | (set() if row["stage"] == "kd-sft" else {"response_kl"})
    answers, whole = (finished[name].metrics[0] for name in ("minillm-answers", "minillm"))
    assert answers["counts"]["positions"] == answers["counts"]["student_tokens"]
    assert whole["counts"]["positions"] > 2 * whole["counts"]["student_tokens"]


@pytest.mark.parametrize("name", ["seqkd", "genrecal"])
def test_the_teachers_own_answers_are_learned(
    finished: dict[str, Run], tiny_pair: TinyPair, data: TinyData, name: str
) -> None:
    """Two steps are one pass over the data: all answers of the labels, in tokens."""
    run, samples = finished[name], read_llava(data.path)
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
    tables = [(finished[one].folder / "labels" / "answers.bin").read_bytes() for one in ("seqkd", "genrecal")]
    assert tables[0] == tables[1]


def test_sequence_level_distillation_is_sft_on_other_answers(finished: dict[str, Run]) -> None:
    for own, given in zip(finished["seqkd"].metrics, finished["sft"].metrics, strict=True):
        assert (own["stage"], own["step"], set(own["terms"])) == (given["stage"], given["step"], {"sft"})
    assert finished["seqkd"].metrics[0]["loss"] != finished["sft"].metrics[0]["loss"]


def test_every_teacher_has_its_recalibrators_and_terms(finished: dict[str, Run], data: TinyData) -> None:
    run = finished["aligned"]
    files = {"recalibrator", "recalibrator-layer1", "recalibrator-teacher1", "recalibrator-teacher1-layer1"}
    for number in (1, 2):
        folder = stage_folder(run, number)
        assert {path.stem for path in folder.glob("recalibrator*")} == files
        shapes = [load_file(folder / f"{name}.safetensors") for name in sorted(files)]
        assert len({one["rec_proj_pre.weight"].shape for one in shapes}) == 2  # teachers of two widths
        assert all("rec_proj_question.weight" in one and "norm.bias" not in one for one in shapes)
        starts = [one["rec_proj_post.weight"].flatten()[:8] for one in shapes]
        assert len({tuple(start.tolist()) for start in starts}) == 4
    weights = {"ar": 0.0, "kl": 1.0, "reg_ar": 1.0, "reg_kl": 0.5}
    for row in run.steps("distill"):
        expected = {f"{term}{mark}" for term in (*weights, "teacher_ar") for mark in ("", "@1")} | {"sft"}
        assert set(row["terms"]) == expected
        shares = {"": 1.0, "@1": 0.5}
        total = row["terms"]["sft"] + sum(
            share * weight * row["terms"][term + mark]
            for mark, share in shares.items()
            for term, weight in weights.items()
        )
        assert row["loss"] == pytest.approx(total)
    # Answer tokens but the first, of the samples in each teacher's domains.
    samples = read_llava(data.path)
    for stage in ("recalibrate", "distill"):
        for mark, route, number in (("", ROUTES[0], 0), ("@1", ROUTES[1], 1)):
            config = read_manifest(run.folder, kind="run")["config"]
            tokenizer = load_processor(Path(config["teachers"][number]["path"])).tokenizer
            total = sum(
                len(tokenizer(sample.answer, add_special_tokens=False)["input_ids"])
                for sample in samples
                if sample.domain in route
            )
            assert sum(row["counts"][f"aligned_tokens{mark}"] for row in run.steps(stage)) == total


def test_a_frozen_recalibrator_stays_as_stage_1_left_it(finished: dict[str, Run]) -> None:
    for name, frozen in (("aligned", True), ("genrecal-no-reg", False)):
        one, two = (stage_folder(finished[name], number) for number in (1, 2))
        for path in one.glob("recalibrator*.safetensors"):
            assert (path.read_bytes() == (two / path.name).read_bytes()) == frozen
    manifests = [
        read_manifest(stage_folder(finished[name], 2), kind="stage") for name in ("aligned", "genrecal")
    ]
    assert manifests[0]["trained_parameters"] < manifests[1]["trained_parameters"]


def test_hidden_answers_change_the_trajectory_and_nothing_else(finished: dict[str, Run]) -> None:
    one, other = (finished[name].metrics for name in ("aligned", "dropping"))
    assert [row["counts"] for row in one] == [row["counts"] for row in other]
    assert abs(one[0]["loss"] - other[0]["loss"]) > 1e-4
    # What is hidden is the teacher's answer to the Recalibrator: the student's own CE is what it was.
    assert one[0]["terms"]["sft"] == pytest.approx(other[0]["terms"]["sft"], abs=1e-5)
    assert one[0]["terms"]["teacher_ar"] == pytest.approx(other[0]["terms"]["teacher_ar"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "pairs"), [("genrecal", 3), ("genrecal-no-reg", 3), ("aligned", 5), ("aligned-zero_3", 5)]
)
def test_features_for_the_figures(
    finished: dict[str, Run], tiny_pair: TinyPair, name: str, pairs: int
) -> None:
    run = finished[name]
    widths = [
        load_model(getattr(tiny_pair, side)).config.get_text_config().hidden_size
        for side in ("student", "teacher")
    ]
    rows = {
        **dict.fromkeys(("z_q_student", "p_q_teacher", "h_q_student", "h_q_teacher"), widths[0]),
        **dict.fromkeys(("r_q_student", "r_q_teacher", "r_a_student", "r_a_teacher"), widths[1]),
    }
    stages = [load_file(stage_folder(run, number) / "features.safetensors") for number in (1, 2)]
    for tensors in stages:
        assert set(tensors) == {f"{when}.{row}" for when in ("before", "after") for row in rows}
        for key, tensor in tensors.items():
            assert tensor.shape == (pairs, rows[key.split(".")[1]]) and tensor.dtype == torch.float32
            assert torch.isfinite(tensor).all()
        for when in ("before", "after"):
            for kind in ("h_q", "r_q", "r_a"):
                student, teacher = (tensors[f"{when}.{kind}_{side}"] for side in ("student", "teacher"))
                cosines = torch.nn.functional.cosine_similarity(student[:, None], teacher[None], dim=-1)
                assert cosines.shape == (pairs, pairs) and torch.isfinite(cosines).all()
                assert not torch.equal(student, teacher)
    one, two = stages
    # Stage 1 trains the Recalibrator alone, and stage 2 begins where it ended.
    assert torch.equal(one["before.z_q_student"], one["after.z_q_student"])
    assert not torch.equal(one["before.h_q_student"], one["after.h_q_student"])
    assert not torch.equal(two["before.z_q_student"], two["after.z_q_student"])
    for row in rows:
        assert torch.allclose(one[f"after.{row}"], two[f"before.{row}"], atol=1e-4)
    assert not (stage_folder(run, 3) / "features.safetensors").exists()


def test_the_manifest_of_a_stage_holds_the_verdict(finished: dict[str, Run]) -> None:
    for name in ("genrecal", "genrecal-no-reg", "aligned"):
        facts = [read_manifest(stage_folder(finished[name], number), kind="stage") for number in (1, 2, 3)]
        assert all(set(one["reading"]) == {"reads", "kl_rise_first", "kl_rise_later"} for one in facts[:2])
        assert "reading" not in facts[2]
        rises = [one["reading"]["kl_rise_first"] for one in facts[:2]]
        # First tokens that are no targets have no figure.
        assert (rises == [None, None]) == (name == "aligned")
    assert "reading" not in read_manifest(stage_folder(finished["gold"], 1), kind="stage")


def test_stage_2_says_what_stage_1_could_not_read(finished: dict[str, Run]) -> None:
    """After two steps no Recalibrator here reads later tokens; the runs of one process follow each other."""
    printed = finished["genrecal"].printed
    unread = 0
    for name in ("genrecal", "genrecal-no-reg", "aligned"):
        unread += read_manifest(stage_folder(finished[name], 1), kind="stage")["reading"]["reads"] != (
            "every answer token"
        )
    assert unread and printed.count("warning: the Recalibrator reads the student for") >= unread


def test_two_ranks_equal_one(finished: dict[str, Run], two_ranks: Run) -> None:
    assert "on 2 ranks" in two_ranks.printed
    assert_same_trajectory(finished["aligned"], two_ranks)
    one, two = (
        load_file(run.folder / "student" / "model.safetensors") for run in (finished["aligned"], two_ranks)
    )
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-3), key


def _method(run: Run) -> str:
    return str(read_manifest(run.folder, kind="run")["config"]["method"])
