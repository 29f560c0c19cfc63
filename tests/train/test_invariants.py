"""One trajectory: ranks, ZeRO stages, checkpointing and accumulation change how, not what."""

from __future__ import annotations

import pytest

from genrecal.core.config import load_config
from genrecal.data.llava import read_llava
from genrecal.data.order import step_indices
from genrecal.train.settings import RunConfig
from tests.tiny import TinyData
from tests.train.conftest import Run, WriteConfig, drive, environment

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def two_ranks(write_config: WriteConfig) -> Run:
    """Two processes over gloo, started by `distill` itself; at times one has no image and the other has."""
    path = write_config("two_ranks", ranks=2, micro_batch=2, accumulation=2)
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(folder=path.with_suffix(""), printed=done.stdout)


def assert_same_trajectory(one: Run, other: Run) -> None:
    assert len(one.metrics) == len(other.metrics) == 4 + 8 + 3
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        for key in ("stage", "step", "steps", "lr", "counts"):
            assert mine[key] == theirs[key]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
        assert mine["terms"] == pytest.approx(theirs["terms"], abs=TOLERANCE)
        if None not in (mine["grad_norm"], theirs["grad_norm"]):
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("variant", ["zero_0", "checkpointing", "one_micro_batch"])
def test_one_rank_variants(runs: dict[str, Run], variant: str) -> None:
    assert_same_trajectory(runs["plain"], runs[variant])


def test_two_ranks_equal_one(runs: dict[str, Run], two_ranks: Run) -> None:
    assert "on 2 ranks" in two_ranks.printed and "on 1 ranks" in runs["plain"].printed
    assert_same_trajectory(runs["plain"], two_ranks)


def test_the_two_ranks_met_batches_with_and_without_images(tiny_data: TinyData) -> None:
    """Under ZeRO-3 both have to run the vision encoder then, or the run above would have hung."""
    samples = read_llava(tiny_data.path)
    uneven = 0
    for step in range(4):
        rows = [
            step_indices(samples=30, seed=0, step=step, rank=rank, ranks=2, micro_batch=2, accumulation=2)
            for rank in (0, 1)
        ]
        for pair in zip(*rows, strict=True):
            uneven += len({any(samples[index].images for index in row) for row in pair}) == 2
    assert uneven > 0


def test_reading_figures_do_not_depend_on_ranks_or_zero(runs: dict[str, Run], two_ranks: Run) -> None:
    """The norms are of the whole step's loss: the engine's scaling over ranks and accumulation is undone."""
    for other in (two_ranks, runs["zero_0"], runs["checkpointing"]):
        for mine, theirs in zip(runs["plain"].metrics, other.metrics, strict=True):
            assert ("reading" in mine) == ("reading" in theirs)
            for key, value in mine.get("reading", {}).items():
                if other is two_ranks and key.startswith("kl_rise"):
                    continue  # its micro-batches are others, and z_q is shuffled within a micro-batch
                assert value == pytest.approx(theirs["reading"][key], rel=1e-3, abs=1e-6), key


def test_the_trajectory_moves(runs: dict[str, Run]) -> None:
    """Equal losses prove nothing where nothing is learned."""
    for stage in ("recalibrate", "distill", "finetune"):
        rows = runs["plain"].steps(stage)
        assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert runs["dropout"].metrics[5]["loss"] != runs["plain"].metrics[5]["loss"]


def test_metrics_say_what_each_stage_does(runs: dict[str, Run], tiny_data: TinyData) -> None:
    plain = runs["plain"]
    trained = {
        "recalibrate": ("ar", "kl", "reg_ar", "reg_kl"),
        "distill": ("ar", "kl", "sft"),
        "finetune": ("sft",),
    }
    settings = load_config(plain.folder / "config.yaml", RunConfig)
    for stage, names in trained.items():
        rows = plain.steps(stage)
        assert [row["step"] for row in rows] == list(range(rows[0]["steps"]))
        assert rows[0]["lr"] == settings.stage(stage).lr_start
        assert rows[-1]["lr"] == pytest.approx(settings.stage(stage).lr_end)
        for row in rows:
            assert row["loss"] == pytest.approx(sum(row["terms"][name] for name in names))
            # What is followed beside: the student's own CE everywhere, the teacher's where it is there.
            assert set(row["terms"]) == {*names, "sft"} | ({"teacher_ar"} if "ar" in names else set())
            counted = {"student_tokens"} | ({"aligned_tokens"} if "ar" in names else set())
            assert set(row["counts"]) == counted and min(row["counts"].values()) > 0
            probed = row["step"] % 2 == 0 or row["step"] + 1 == row["steps"]
            assert ("reading" in row) == probed
    # General VQA is left out of the last stage alone.
    assert f"distill: {tiny_data.samples} samples" in plain.printed
    assert f"finetune: {tiny_data.without_general_vqa} samples" in plain.printed
    assert plain.steps("finetune")[0]["steps"] == round(tiny_data.without_general_vqa / 8)


def test_reading_figures_stand_in_stages_1_and_2(runs: dict[str, Run]) -> None:
    for stage in ("recalibrate", "distill"):
        for row in runs["plain"].steps(stage)[::2]:
            reading = row["reading"]
            assert reading["grad_distill"] > 0 and reading["grad_sft"] > 0
            assert reading["grad_distill"] ** 2 == pytest.approx(
                reading["grad_distill_first"] ** 2 + reading["grad_distill_later"] ** 2
            )
            assert isinstance(reading["kl_rise_first"], float) and isinstance(reading["kl_rise_later"], float)
    assert set(runs["plain"].steps("finetune")[0]["reading"]) == {"grad_sft"}


def test_sft_method_takes_as_many_student_steps_without_a_teacher(runs: dict[str, Run]) -> None:
    rows = runs["sft"].metrics
    assert {row["stage"] for row in rows} == {"adapt", "finetune"}
    assert all(set(row["terms"]) == {"sft"} and set(row["counts"]) == {"student_tokens"} for row in rows)
    assert (runs["sft"].folder / "student" / "config.json").is_file()
