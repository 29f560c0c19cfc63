"""The verdict over a stage's probes, and the warning that stage 2 starts with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from genrecal.core.manifest import read_manifest, write_manifest
from genrecal.train.reading import READS_NATS, Verdict, verdict
from genrecal.train.stage import _warn_unread
from tests.train.conftest import Run

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
    assert found is not None and found.reads_all
    assert found.kl_rise_first == pytest.approx(1.5 * READS_NATS)
    assert found.kl_rise_later == pytest.approx(0.4)


def test_without_a_figure_there_is_no_verdict() -> None:
    """A stage without a Recalibrator, or batches of one sample each."""
    assert verdict([]) is None
    assert verdict([{"grad_sft": 1.0}]) is None
    assert verdict([reading(None, None)]) is None


def test_the_sentence_says_both_figures() -> None:
    found = verdict([reading(1.25, 0.0625)])
    assert found is not None
    assert found.sentence() == (
        "the Recalibrator reads the student for the first answer token alone"
        " (KL rise with another sample's features: first +1.250 nats, later +0.062 nats)"
    )
    short = verdict([reading(-0.5, None)])
    assert short is not None and "first -0.500 nats, later - nats" in short.sentence()


@pytest.mark.parametrize("answer_input", ["features", "embeddings", "aligned"])
def test_stage_2_warns_of_a_recalibrator_that_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer_input: str
) -> None:
    for first, later in ((MUCH, LITTLE), (LITTLE, MUCH), (LITTLE, LITTLE)):
        found = verdict([reading(first, later)])
        assert found is not None
        write_manifest(tmp_path, kind="stage", reading=asdict(found))
        _warn_unread(tmp_path, answer_input)
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith(f"warning: {found.sentence()}")
        assert (
            "answer_input: aligned" in said if answer_input != "aligned" else said.endswith("stage 1 longer")
        )


def test_stage_2_is_silent_where_every_token_reads_or_nothing_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verdict([reading(MUCH, MUCH)])
    assert found is not None
    write_manifest(tmp_path, kind="stage", reading=asdict(found))
    _warn_unread(tmp_path, "features")
    write_manifest(tmp_path, kind="stage")
    _warn_unread(tmp_path, "features")
    assert capsys.readouterr().out == ""


def test_manifests_hold_the_verdict_of_the_stages_last_quarter(runs: dict[str, Run]) -> None:
    run = runs["plain"]
    for number, stage in ((1, "recalibrate"), (2, "distill")):
        manifest = read_manifest(run.folder / "stages" / f"{number}-{stage}", kind="stage")
        steps = run.steps(stage)
        last = [row["reading"] for row in steps[len(steps) * 3 // 4 :] if "reading" in row]
        found = Verdict(**manifest["reading"])
        assert found == verdict(last) and found.sentence() in run.printed
    assert "reading" not in read_manifest(run.folder / "stages" / "3-finetune", kind="stage")
