"""The verdict over a stage's probes, and the warning that stage 2 starts with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genrecal.core.cosines import pair_cosines
from genrecal.core.manifest import read_manifest, write_manifest
from genrecal.train.reading import READS, READS_NATS, Verdict, verdict
from genrecal.train.stage import _warn_unread
from tests.train.conftest import Run, stage_folder

LITTLE, MUCH = READS_NATS / 2, READS_NATS * 2


def reading(first: float | None, later: float | None) -> dict[str, Any]:
    return {"grad_sft": 1.0, "grad_distill": 1.0, "kl_rise_first": first, "kl_rise_later": later}


@pytest.mark.parametrize(
    ("first", "later", "reads"),
    [
        (MUCH, MUCH, "every answer token"),
        (MUCH, LITTLE, "the first answer token alone"),
        (LITTLE, MUCH, "later answer tokens alone"),
        (LITTLE, -MUCH, "no answer token"),
        # Answers of one token have no later ones; first tokens that are no targets have no figure.
        (MUCH, None, "every answer token"),
        (None, MUCH, "every answer token"),
        (LITTLE, None, "no answer token"),
        (None, LITTLE, "no answer token"),
    ],
)
def test_the_verdict_follows_both_rises(first: float | None, later: float | None, reads: str) -> None:
    found = verdict([reading(first, later)])
    assert found == Verdict(reads=reads, kl_rise_first=first, kl_rise_later=later)
    assert found.reads_all == (reads == "every answer token")


def test_the_verdict_is_of_the_mean_over_the_probes() -> None:
    found = verdict([reading(0.0, 1.0), reading(None, 0.0), reading(3 * READS_NATS, 0.2)])
    assert found.reads_all
    assert found.kl_rise_first == pytest.approx(1.5 * READS_NATS)
    assert found.kl_rise_later == pytest.approx(0.4)


@pytest.mark.parametrize("readings", [[], [reading(None, None)]])
def test_without_a_rise_nobody_can_tell_and_it_is_said(readings: list[dict[str, Any]]) -> None:
    """No probe was taken, or every probed step was one sample."""
    found = verdict(readings)
    assert found == Verdict() and not found.reads_all
    assert found.sentence().startswith(
        "cannot tell whether the Recalibrator reads the student (no probed step"
    )


def test_the_verdict_has_the_means_of_figure_7() -> None:
    """Two pairs at right angles, with a common part of 3 and without it."""
    one_ND = np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]])
    found = verdict([reading(MUCH, MUCH)], pair_cosines(one_ND, one_ND))
    means = (found.cosine_same, found.cosine_others, found.centred_same, found.centred_others)
    assert means == pytest.approx((1.0, 0.9, 1.0, -1.0))
    assert found.sentence().endswith(
        "; cosines of its outputs at the two models' questions: +1.000 in a pair, +0.900 across pairs;"
        " centred +1.000 and -1.000"
    )
    assert "cosines" in verdict([], pair_cosines(one_ND, one_ND)).sentence()
    # A single pair has no others.
    assert verdict([], pair_cosines(one_ND[:1], one_ND[:1])) == Verdict()


def test_the_sentence_says_both_figures() -> None:
    found = verdict([reading(1.25, 0.0625)])
    assert found.sentence() == (
        "the Recalibrator reads the student for the first answer token alone"
        " (KL rise with another sample's features: first +1.250 nats, later +0.062 nats)"
    )
    short = verdict([reading(-0.5, None)])
    assert "first -0.500 nats, later - nats" in short.sentence()


@pytest.mark.parametrize("answer_input", ["features", "embeddings", "aligned"])
def test_stage_2_warns_of_a_recalibrator_that_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer_input: str
) -> None:
    for first, later in ((MUCH, LITTLE), (LITTLE, MUCH), (LITTLE, LITTLE)):
        found = verdict([reading(first, later)])
        write_manifest(tmp_path, kind="stage", reading=asdict(found))
        _warn_unread(tmp_path, answer_input)
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith(f"warning: {found.sentence()}")
        assert (
            "answer_input: aligned" in said if answer_input != "aligned" else said.endswith("stage 1 longer")
        )


@pytest.mark.parametrize("facts", [{"reading": asdict(Verdict())}, {}])
def test_stage_2_says_when_nobody_could_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, Any]
) -> None:
    """Micro-batches and accumulation of 1; a stage without any record is no better."""
    write_manifest(tmp_path, kind="stage", **facts)
    _warn_unread(tmp_path, "features")
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("warning: cannot tell whether the Recalibrator reads the student (no probed step")
    assert "Raise micro_batch or accumulation of the stage before to 2 or more" in said
    assert "aligned" not in said


def test_stage_2_is_silent_where_every_token_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path, kind="stage", reading=asdict(verdict([reading(MUCH, MUCH)])))
    _warn_unread(tmp_path, "features")
    assert capsys.readouterr().out == ""


def test_manifests_hold_the_verdict_of_the_stages_last_quarter(runs: dict[str, Run]) -> None:
    run = runs["plain"]
    for number, stage in ((1, "recalibrate"), (2, "distill")):
        manifest = read_manifest(run.folder / "stages" / f"{number}-{stage}", kind="stage")
        steps = run.steps(stage)
        last = [row["reading"] for row in steps[len(steps) * 3 // 4 :] if "reading" in row]
        found = Verdict(**manifest["reading"])
        tensors = load_file(stage_folder(run, number) / "features.safetensors")
        student_ND, teacher_ND = (tensors[f"after.r_q_{side}"] for side in ("student", "teacher"))
        cosines = pair_cosines(student_ND.double().numpy(), teacher_ND.double().numpy())
        assert found == verdict(last, cosines) and found.sentence() in run.printed
        own = torch.nn.functional.cosine_similarity(student_ND, teacher_ND, dim=-1)
        assert found.cosine_same == pytest.approx(float(own.mean()), abs=1e-5)
    assert "reading" not in read_manifest(run.folder / "stages" / "3-finetune", kind="stage")


def test_micro_batches_of_one_sample_come_to_a_verdict(runs: dict[str, Run]) -> None:
    """Under ZeRO-3, with recomputed activations; accumulation brings the other samples."""
    run = runs["bf16"]
    for number in (1, 2):
        found = Verdict(**read_manifest(stage_folder(run, number), kind="stage")["reading"])
        assert found.reads in READS.values()
        assert isinstance(found.kl_rise_first, float) and isinstance(found.kl_rise_later, float)
