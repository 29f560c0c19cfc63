"""The check before the first step, on VLMs that were really trained (benchmarks/models): faults are found.

Each fault is put into a copy of the teacher, or into what reads samples for it; the intact pair passes.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from genrecal.core.errors import TrainError
from genrecal.data.mixture import Mixture, read_mixture
from genrecal.data.pair import PairReader
from genrecal.data.source import SourceConfig
from genrecal.demo.datasets import write_training_set
from genrecal.demo.pair import INTERNVL_TOKENS, train_tokenizer
from genrecal.models.processors import load_model, load_processor
from genrecal.train.preflight_models import Examined, bad_weights, examine
from genrecal.train.preflight_samples import Seat, first_other, read_samples, require_same, spread
from genrecal.train.preflight_verdict import apart, stored_findings
from genrecal.train.stages import METHODS
from tests.tiny import CORPUS
from tests.train.conftest import ROOT, WriteConfig, as_one_rank, drive, environment

pytestmark = pytest.mark.usefixtures("one_rank")

MODELS = ROOT / "benchmarks" / "models"
TEACHER, STUDENT = MODELS / "strong" / "student", MODELS / "student" / "student"
SAMPLES = 24


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_set(tmp_path_factory.mktemp("drawn"), seed=3, images=20, split="distill")


@pytest.fixture(scope="module")
def mixture(drawn: Path) -> Mixture:
    return read_mixture([SourceConfig(path=drawn)])


Look = Callable[..., dict[str, Examined]]


@pytest.fixture(scope="module")
def look(mixture: Mixture) -> Look:
    """Examine the pair after `change` was made to the teacher's model and processor."""

    def run(change: Callable[[Any, Any], None] | None = None) -> dict[str, Examined]:
        model, processor = load_model(TEACHER), load_processor(TEACHER)
        if change is not None:
            change(model, processor)
        reader = PairReader(mixture, student=load_processor(STUDENT), teachers=[processor], max_tokens=512)
        seats = [
            Seat(
                name=name,
                folder=folder,
                model=one,
                processor=reads,
                blank=blank,
                domains=None,
                teaches=name == "teacher",
            )
            for name, folder, one, reads, blank in (
                ("student", STUDENT, load_model(STUDENT), reader.student, reader.student_blank),
                ("teacher", TEACHER, model, processor, reader.teacher_blanks[0]),
            )
        ]
        read = read_samples(seats, reader, mixture, SAMPLES)
        assert not read.findings
        require_same(read.samples)
        return {one.name: one for one in examine(seats, read.samples, torch.float32)}

    return run


def errors(examined: Examined) -> str:
    return " | ".join(finding.what for finding in examined.findings if finding.level == "error")


def scrambled(prefix: str) -> Callable[[Any, Any], None]:
    """Weights of the right size at the wrong places: as good as random ones."""

    def change(model: Any, _: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if name.startswith(prefix):
                order = torch.randperm(weight.numel(), generator=generator)
                weight.data = weight.data.flatten()[order].view_as(weight)

    return change


def test_the_right_pair_passes_and_its_figures_are_those_of_trained_models(look: Look) -> None:
    found = look()
    assert not found["student"].findings and not found["teacher"].findings
    teacher, student = found["teacher"].figures, found["student"].figures
    assert teacher is not None and student is not None
    assert teacher.samples == teacher.samples_with_images == SAMPLES
    # Its marks (scores.json) are those of a model that reads its images; the student's are lower.
    assert teacher.nats < student.nats < student.exchanged_nats < teacher.exchanged_nats  # type: ignore[operator]
    assert teacher.agreement > 0.9 > student.agreement
    assert teacher.images is not None and teacher.images.p_value < 1e-4


def test_a_projector_with_the_wrong_weights(look: Look) -> None:
    teacher = look(scrambled("model.multi_modal_projector."))["teacher"]
    assert "the images tell the student more than the teacher" in errors(teacher)
    said = " ".join(finding.what for finding in teacher.findings)
    assert "another sample's images serve it as well as the own ones" in said
    assert "it tells the given answers worse than the student" in said


def test_pixels_that_do_not_reach_the_teacher(look: Look) -> None:
    def change(model: Any, _: Any) -> None:
        for weight in model.model.multi_modal_projector.linear_2.parameters():
            weight.data.zero_()

    assert "changes nothing in its answers: no pixel reaches it" in errors(look(change)["teacher"])


def test_the_tokenizer_of_another_model(look: Look) -> None:
    """Its ids are all valid ones, so that nothing but the CE can tell."""

    def change(_: Any, processor: Any) -> None:
        processor.tokenizer = copy.deepcopy(processor.tokenizer)
        processor.tokenizer._tokenizer = train_tokenizer(CORPUS, INTERNVL_TOKENS, 340)

    assert "a uniform guess's is 6.35: it does not read these samples" in errors(look(change)["teacher"])


def test_a_vocabulary_that_ends_before_the_tokenizers(look: Look) -> None:
    found = look(lambda model, _: model.resize_token_embeddings(400))["teacher"]
    assert "entries beyond the model's 400 embeddings" in errors(found)
    assert "and the model has 400 embeddings" in errors(found)
    assert found.figures is None  # no forward pass with such ids


def test_weights_that_are_not_finite(look: Look) -> None:
    def change(model: Any, _: Any) -> None:
        model.model.language_model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan

    found = errors(look(change)["teacher"])
    assert "1 of its weights hold NaN or infinity: model.language_model.layers.1.mlp.up_proj.weight" in found


def test_more_image_tokens_than_features(look: Look) -> None:
    """A preprocessor_config.json of a model with larger tiles of tokens."""

    def change(_: Any, processor: Any) -> None:
        processor.image_seq_length += 1

    found = look(change)["teacher"]
    assert found.failed and "it cannot read sample 'distill-3-" in errors(found)


def test_pixels_that_are_not_scaled(look: Look) -> None:
    def change(_: Any, processor: Any) -> None:
        processor.image_processor.do_rescale = False

    assert "they are scaled twice, or not at all" in errors(look(change)["teacher"])


def test_another_mean_and_deviation_of_the_pixels_is_not_found(look: Look) -> None:
    """A limit, not a wish: the teacher still reads such images, only a little worse."""

    def change(_: Any, processor: Any) -> None:
        processor.image_processor.image_mean = processor.image_processor.image_std = [0.5, 0.5, 0.5]

    intact, changed = look()["teacher"].figures, look(change)["teacher"]
    assert not changed.findings and changed.figures is not None and intact is not None
    assert intact.nats < changed.figures.nats < intact.nats + 0.3


def test_bad_weights_names_parameters() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.data[1] = torch.inf
    assert bad_weights(layer) == ["bias"]


def test_stored_features_that_are_apart_from_the_live_teacher() -> None:
    live = {"one": 0.2, "two": 1.0, "three": 9.0}
    assert apart({"other": 0.2}, live) is None
    near, far = apart({"one": 0.21, "two": 1.01}, live), apart({"one": 2.2, "two": 1.0}, live)
    assert near == pytest.approx(0.01) and not stored_findings(near)
    (finding,) = stored_findings(far)
    assert finding.level == "error" and "1.000 nats per token otherwise" in finding.what


def test_samples_come_from_every_source_and_domain(drawn: Path, tmp_path: Path) -> None:
    rows = json.loads(drawn.read_text())
    few = [row for row in rows if row["domain"] == "knowledge"][:2]
    for row in few:
        row.pop("image")
        row["conversations"][0]["value"] = row["conversations"][0]["value"].removeprefix("<image>\n")
    (tmp_path / "few.json").write_text(json.dumps(few))
    both = read_mixture([SourceConfig(path=drawn), SourceConfig(path=tmp_path / "few.json")])
    places = spread(both, 8)
    assert len(places) == len(set(places)) == 8 and places == spread(both, 8)
    assert sum(place >= len(rows) for place in places) >= 1  # of two among fifty
    assert len({both[place].domain for place in places}) == len({row["domain"] for row in rows})
    assert len(spread(both, 10**4)) == len(both)


def test_a_rank_that_reads_other_samples_is_found() -> None:
    assert first_other([["a"], ["a"], ["b"]]) == 2
    assert first_other([["a"], ["a"]]) is None


# The tiny pair's weights are random, so its teacher is none; a step of each stage is enough.
SHORT = {"stages": {name: {"epochs": 0.2} for name in METHODS["genrecal"].stages}}
STOP, WARN = (SHORT | {"preflight": {"mode": mode, "samples": 6}} for mode in ("stop", "warn"))


@pytest.mark.full
def test_a_run_stops_alike_on_one_rank_and_on_two(write_config: WriteConfig) -> None:
    records = {}
    for ranks in (1, 2):
        path = write_config(f"preflight-{ranks}", ranks=ranks, changes=STOP)
        done = drive([path], as_one_rank() if ranks == 1 else environment())
        assert done.returncode == TrainError.exit_code
        assert "before the first step, teacher " in done.stderr
        assert "preflight.mode: warn would train nevertheless" in done.stderr
        assert "it does not read these samples" in done.stdout
        run = path.with_suffix("")
        assert not (run / "metrics.jsonl").exists()
        records[ranks] = json.loads((run / "preflight.json").read_text())
    one, two = (records[ranks]["recalibrate"] for ranks in (1, 2))
    assert one["stopped"] and two["stopped"]
    for name in ("student", "teacher"):
        assert one["models"][name]["nats"] == pytest.approx(two["models"][name]["nats"], abs=1e-6)
        assert one["models"][name]["findings"] == two["models"][name]["findings"]


def test_the_teacher_is_checked_before_it_writes_labels(write_config: WriteConfig) -> None:
    path = write_config("preflight-labels", method="seqkd", changes={"preflight": STOP["preflight"]})
    done = drive([path], as_one_rank())
    assert done.returncode == TrainError.exit_code
    assert "before the first step, teacher " in done.stderr and "labels: 6 samples" in done.stdout
    run = path.with_suffix("")
    assert not any(journal.read_text() for journal in (run / "labels-journal").iterdir())
    record = json.loads((run / "preflight.json").read_text())
    assert record["labels"]["stopped"] and list(record["labels"]["models"]) == ["teacher"]


@pytest.mark.full
def test_a_stopped_run_goes_on_when_it_is_told_to(write_config: WriteConfig) -> None:
    done = drive([write_config("preflight-stopped", changes=STOP)], as_one_rank())
    assert done.returncode == TrainError.exit_code
    path = write_config("preflight-stopped", changes=WARN)
    done = drive([path], as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "error: teacher" in done.stdout
    record = json.loads((path.with_suffix("") / "preflight.json").read_text())
    # Stage 2 reads the same models, so they are not looked at again.
    assert list(record) == ["recalibrate"] and not record["recalibrate"]["stopped"]


@pytest.mark.full
def test_a_run_with_a_scrambled_teacher_stops(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "teacher")
    model = load_model(TEACHER)
    scrambled("model.multi_modal_projector.")(model, None)
    model.save_pretrained(tmp_path / "teacher")
    config = {
        "student": str(STUDENT),
        "teacher": str(tmp_path / "teacher"),
        "output": str(tmp_path / "run"),
        "data": {"sources": [{"path": str(drawn)}]},
        "engine": {"zero_stage": 3, "precision": "bf16"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = drive([tmp_path / "run.yaml"], as_one_rank())
    assert done.returncode == TrainError.exit_code
    assert "the images tell the student more than the teacher" in done.stderr
