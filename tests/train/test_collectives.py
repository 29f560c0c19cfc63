"""ZeRO-3 gathers weights from all ranks when a module runs: whatever a batch holds, all ranks run the same.

Two processes meet every pair of batches here; if one of them ran another module, the other would wait for it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.types import Sample
from genrecal.data.mixture import SourceConfig, read_mixture
from genrecal.data.order import step_indices
from genrecal.models.processors import load_model, load_processor
from genrecal.train.greedy import greedy_answers
from genrecal.train.settings import RelabelConfig
from genrecal.train.stages import STAGES
from tests.families import NAMES
from tests.kin import Kin
from tests.tiny import ANSWERS, QUESTIONS, TinyData, TinyPair
from tests.train.algorithm_parts import Parts, make_parts
from tests.train.comparison_parts import image_token
from tests.train.conftest import DRIVE, TIMEOUT_S, Run, WriteConfig, as_one_rank, environment

RANKS, MICRO_BATCH = 2, 2
# What the two ranks meet in a step: an image, several, one of many tiles, text, and what cannot be read.
STEPS = (
    (("image", "image"), ("text", "text")),
    (("text", "text"), ("text", "text")),
    (("broken", "broken"), ("tiles", "image")),
    (("image", "text"), ("several", "tiles")),
    (("text", "text"), ("broken", "broken")),
    (("broken", "image"), ("text", "broken")),
    (("broken", "broken"), ("broken", "broken")),
    (("tiles", "several"), ("image", "image")),
)
SAMPLES = len(STEPS) * RANKS * MICRO_BATCH
SIZES = {"image": (48, 48), "tiles": (144, 48), "several": (33, 57)}


def write_plan(folder: Path) -> Path:
    """Data that the order of seed 0 deals to the ranks as STEPS has it."""
    (folder / "images").mkdir(parents=True)
    rows: list[Any] = [None] * SAMPLES
    for step, ranks in enumerate(STEPS):
        for rank, kinds in enumerate(ranks):
            (indices,) = step_indices(
                samples=SAMPLES,
                seed=0,
                step=step,
                rank=rank,
                ranks=RANKS,
                micro_batch=MICRO_BATCH,
                accumulation=1,
            )
            for index, kind in zip(indices, kinds, strict=True):
                rows[index] = _row(folder, index, kind)
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "data.json"


def _row(folder: Path, index: int, kind: str) -> dict[str, Any]:
    names = [f"images/{index}-{place}.png" for place in range({"text": 0, "several": 3}.get(kind, 1))]
    for place, name in enumerate(names):
        width, height = SIZES.get(kind, (48, 48))
        noise = np.random.default_rng([index, place]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
        if kind == "broken":
            (folder / name).write_bytes(b"no image")
    question = "<image>\n" * len(names) + QUESTIONS[index % len(QUESTIONS)]
    turns = [
        {"from": "human", "value": question},
        {"from": "gpt", "value": ANSWERS[index % len(ANSWERS)]},
    ]
    # Of one domain: every stage reads all of it, so every stage meets STEPS.
    return {"id": f"{kind}-{index}", "image": names, "domain": "knowledge", "conversations": turns}


def train(path: Path, env: dict[str, str]) -> Run:
    """Run a config; ranks that wait for each other are killed and fail the test."""
    process = subprocess.Popen(
        [*DRIVE, str(path)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail(f"{path.stem}: no end after {TIMEOUT_S} s: its ranks wait for each other")
    assert process.returncode == 0, said[-3000:]
    return Run(folder=path.with_suffix(""), printed=printed)


def both(write_config: WriteConfig, plan: Path, name: str, **settings: Any) -> tuple[Run, Run]:
    """The same run on two ranks and on one."""
    shared = {
        "zero_stage": 3,
        "gradient_checkpointing": True,
        "micro_batch": MICRO_BATCH,
        "changes": {
            "data": {
                "sources": [{"path": str(plan)}],
                "on_bad": "skip",
                "max_bad": sum(kind == "broken" for ranks in STEPS for row in ranks for kind in row),
            },
            "stages": {"distill": {"epochs": 1.0}},
            **settings.pop("changes", {}),
        },
        **settings,
    }
    two = train(write_config(f"{name}_two", ranks=RANKS, accumulation=1, **shared), environment())
    one = train(write_config(f"{name}_one", accumulation=RANKS, **shared), as_one_rank())
    return two, one


def assert_same(two: Run, one: Run, stages: int) -> None:
    assert "on 2 ranks" in two.printed and "on 1 ranks" in one.printed
    assert len(two.metrics) == len(one.metrics) == stages * len(STEPS)
    for mine, theirs in zip(two.metrics, one.metrics, strict=True):
        assert (mine["stage"], mine["step"], mine["counts"]) == (
            theirs["stage"],
            theirs["step"],
            theirs["counts"],
        )
        kinds = [kind for row in STEPS[mine["step"]] for kind in row]
        assert mine["samples"] == theirs["samples"] == sum(kind != "broken" for kind in kinds)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert mine["terms"] == pytest.approx(theirs["terms"], abs=1e-4)
        assert (mine["loss"] > 0) == (mine["samples"] > 0)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "data")


def test_two_ranks_never_wait_for_each_other(write_config: WriteConfig, plan: Path) -> None:
    """All stages: Qwen2-VL learns, its encoder frozen, then with its projector trained; InternVL teaches.

    And before, it answers the questions itself: sample by sample, so that text meets images on the ranks.
    """
    answers = {"labels": "teacher", "relabel": {"batch": 1, "max_new_tokens": 3}}
    two, one = both(write_config, plan, "collectives", changes=answers)
    assert "labels: " in two.printed
    assert_same(two, one, stages=3)


@pytest.mark.full
def test_an_internvl_student(write_config: WriteConfig, plan: Path, kin: Kin) -> None:
    """Another way from pixels to tokens, whose projector trains."""
    changes = {"student": str(kin.twin), "teacher": None}
    two, one = both(write_config, plan, "collectives_internvl", method="finetune", changes=changes)
    assert_same(two, one, stages=1)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("qwen2_vl", "internvl")])
def test_every_other_family(
    write_config: WriteConfig, plan: Path, family_folders: dict[str, Path], name: str
) -> None:
    changes = {"student": str(family_folders[name]), "teacher": None}
    two, one = both(write_config, plan, f"collectives_{name}", method="finetune", changes=changes)
    assert_same(two, one, stages=1)


def test_answers_of_text_do_not_see_the_blank_image(tiny_pair: TinyPair, plan: Path, tmp_path: Path) -> None:
    """What one rank runs the encoder for, so that the other one need not wait; an unreadable one has none."""
    model, processor = load_model(tiny_pair.teacher), load_processor(tiny_pair.teacher)
    samples = read_mixture([SourceConfig(path=plan)], cache=tmp_path)
    text = [sample for sample in samples if not sample.images][:3]
    broken = next(sample for sample in samples if sample.id.startswith("broken"))
    settings = RelabelConfig(max_new_tokens=6, keep_unended=True)

    def answers(rows: list[Sample], *, together: bool, skips: bool = True) -> list[str]:
        return greedy_answers(model, processor, rows, settings, together=together, skips=skips)

    alone = answers(text, together=False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert all(alone) and answers(text, together=True) == alone
    finally:
        torch.distributed.destroy_process_group()
    assert answers([text[0], broken], together=False) == [alone[0], ""]
    with pytest.raises(DataError, match="is not an image of a known format"):
        answers([broken], together=False, skips=False)


@pytest.fixture(scope="module", params=["qwen2_vl", "internvl"])
def parts(
    request: pytest.FixtureRequest, tiny_pair: TinyPair, tiny_data: TinyData, kin: Kin
) -> Iterator[Parts]:
    """A student of another vocabulary than the teacher's, and one of the same."""
    student = tiny_pair.student if request.param == "qwen2_vl" else kin.twin
    made = make_parts(TinyPair(teacher=tiny_pair.teacher, student=student), tiny_data)
    made.student.requires_grad_(True)
    yield made
    made.student.requires_grad_(False)


def stages_of(parts: Parts) -> list[str]:
    same = parts.student.config.model_type == parts.teacher.config.model_type
    other = ("reverse_kl", "skewed_reverse_kl", "response_kl")
    return [name for name, stage in STAGES.items() if same or not set(other) & set(stage.losses)]


@pytest.fixture(scope="module")
def objectives(parts: Parts) -> dict[str, Callable[[Any], Any]]:
    """For each stage: terms, counts and the student's gradients of a batch."""
    from genrecal.train.comparison import Comparison
    from genrecal.train.objective import Objective
    from genrecal.train.recalibrated import Source

    vocabulary = torch.arange(50)

    def of(name: str) -> Callable[[Any], Any]:
        losses = STAGES[name].losses
        source = Source(parts.teacher, [parts.recalibrator] if "align" in losses else [])
        settings = Comparison(image_token_id=image_token(parts), shared_ids=(vocabulary, vocabulary))
        objective = Objective(student=parts.student, sources=[source], losses=losses, comparison=settings)

        def take(batch: Any) -> Any:
            parts.student.zero_grad()
            total, terms = objective.eval()(batch, dict.fromkeys(STAGES[name].terms, 1.0))
            total.backward()
            gradients = {
                name: parameter.grad
                for name, parameter in parts.student.named_parameters()
                if parameter.grad is not None
            }
            return terms, objective.counts(batch), gradients

        return take

    return {name: of(name) for name in stages_of(parts)}


def test_a_sample_that_is_left_out_adds_nothing(parts: Parts, objectives: dict[str, Any]) -> None:
    """The same losses, counts and gradients as without its row."""
    whole = parts.batch()
    less = parts.batch((parts.rows[0], parts.reader.absent, *parts.rows[1:], parts.reader.absent))
    for take in objectives.values():
        terms, counts, gradients = take(whole)
        same_terms, same_counts, same_gradients = take(less)
        assert same_counts == counts and same_gradients.keys() == gradients.keys()
        for name, value in terms.items():
            assert float(same_terms[name]) == pytest.approx(float(value), rel=1e-5), name
        for name, gradient in gradients.items():
            largest = float(gradient.abs().max())
            assert torch.allclose(same_gradients[name], gradient, atol=1e-4 * largest + 1e-7), name


def test_a_batch_without_an_answer_is_exactly_nothing(parts: Parts, objectives: dict[str, Any]) -> None:
    """And yet its gradients, all zero, reach every weight that those of other batches reach."""
    nothing = parts.batch((parts.reader.absent,) * 3)
    for name, take in objectives.items():
        _, _, gradients = take(parts.batch())
        terms, counts, zeros = take(nothing)
        assert all(float(value) == 0 for value in terms.values()), name
        assert all(value == 0 for value in counts.values()), name
        assert zeros.keys() == gradients.keys(), name
        assert all(bool((gradient == 0).all()) for gradient in zeros.values()), name
