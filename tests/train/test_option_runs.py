"""Runs with a Recalibrator and every option of it: terms, files, features and the verdict."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from genrecal.core.manifest import read_manifest
from genrecal.data.llava import read_llava
from genrecal.models.processors import load_model, load_processor
from genrecal.train.reading import Verdict
from tests.tiny import TinyData, TinyPair
from tests.train.conftest import Run, WriteConfig, assert_same_steps, drive, environment, stage_folder
from tests.train.method_runs import ROUTES, SHORT, merged, several_options


@pytest.fixture(scope="module", params=[0, pytest.param(3, marks=pytest.mark.full)])
def two_ranks(
    write_config: WriteConfig, method_data: TinyData, teachers: dict[str, Any], request: pytest.FixtureRequest
) -> Run:
    """As `aligned`, in two processes; at times one of them has no sample for one of the teachers."""
    path = write_config(
        f"methods-two_ranks-zero_{request.param}",
        data=method_data.path,
        changes=merged(SHORT, several_options(teachers) | {"engine": {"feature_samples": 0}}),
        ranks=2,
        micro_batch=2,
        accumulation=1,
        zero_stage=request.param,
    )
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(folder=path.with_suffix(""), printed=done.stdout)


def test_every_teacher_has_its_recalibrators_and_terms(
    method_runs: dict[str, Run], method_data: TinyData
) -> None:
    run = method_runs["aligned"]
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
    samples = read_llava(method_data.path)
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


def test_a_frozen_recalibrator_stays_as_stage_1_left_it(method_runs: dict[str, Run]) -> None:
    for name, frozen in (("aligned", True), ("genrecal-no-reg", False)):
        one, two = (stage_folder(method_runs[name], number) for number in (1, 2))
        for path in one.glob("recalibrator*.safetensors"):
            assert (path.read_bytes() == (two / path.name).read_bytes()) == frozen
    manifests = [
        read_manifest(stage_folder(method_runs[name], 2), kind="stage") for name in ("aligned", "genrecal")
    ]
    assert manifests[0]["trained_parameters"] < manifests[1]["trained_parameters"]


def test_hidden_answers_change_the_trajectory_and_nothing_else(method_runs: dict[str, Run]) -> None:
    one, other = (method_runs[name].metrics for name in ("aligned", "dropping"))
    assert [row["counts"] for row in one] == [row["counts"] for row in other]
    assert abs(one[0]["loss"] - other[0]["loss"]) > 1e-4
    # What is hidden is the teacher's answer to the Recalibrator: the student's own CE is what it was.
    assert one[0]["terms"]["sft"] == pytest.approx(other[0]["terms"]["sft"], abs=1e-5)
    assert one[0]["terms"]["teacher_ar"] == pytest.approx(other[0]["terms"]["teacher_ar"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "pairs"), [("genrecal", 3), ("genrecal-no-reg", 3), ("aligned", 5), ("aligned-zero_3", 5)]
)
def test_features_for_the_figures(
    method_runs: dict[str, Run], tiny_pair: TinyPair, name: str, pairs: int
) -> None:
    run = method_runs[name]
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


def test_the_manifest_of_a_stage_holds_the_verdict(method_runs: dict[str, Run]) -> None:
    for name in ("genrecal", "genrecal-no-reg", "aligned"):
        facts = [read_manifest(stage_folder(method_runs[name], number), kind="stage") for number in (1, 2, 3)]
        keys = {field.name for field in fields(Verdict)}
        assert all(set(one["reading"]) == keys for one in facts[:2])
        assert all(isinstance(one["reading"]["centred_others"], float) for one in facts[:2])
        assert "reading" not in facts[2]
        rises = [one["reading"]["kl_rise_first"] for one in facts[:2]]
        # First tokens that are no targets have no figure.
        assert (rises == [None, None]) == (name == "aligned")
    assert "reading" not in read_manifest(stage_folder(method_runs["gold"], 1), kind="stage")


def test_stage_2_says_what_stage_1_could_not_read(method_runs: dict[str, Run]) -> None:
    """After two steps no Recalibrator here reads later tokens; the sentences' figures tell the runs apart."""
    names = ("genrecal", "genrecal-no-reg", "aligned")
    found = [
        Verdict(**read_manifest(stage_folder(method_runs[name], 1), kind="stage")["reading"])
        for name in names
    ]
    assert len({one.sentence() for one in found}) == len(names)
    for name, one in zip(names, found, strict=True):
        assert not one.reads_all, name
        assert f"warning: {one.sentence()}. " in method_runs[name].printed, name


def test_two_ranks_equal_one(method_runs: dict[str, Run], two_ranks: Run) -> None:
    assert "on 2 ranks" in two_ranks.printed
    assert_same_steps(method_runs["aligned"], two_ranks)
    one, two = (
        load_file(run.folder / "student" / "model.safetensors") for run in (method_runs["aligned"], two_ranks)
    )
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-3), key
