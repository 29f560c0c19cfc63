"""What a config makes of a method's stages, and which configs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError
from genrecal.train.settings import RunConfig
from genrecal.train.stages import LOSSES, METHODS, STAGES, TERMS

MINIMAL = {
    "student": "student",
    "teacher": "teacher",
    "output": "run",
    "data": {"sources": [{"path": "data.json"}]},
}


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate(MINIMAL | settings)


def refused(tmp_path: Path, message: str, *overrides: str) -> None:
    """As the command line has it: one ConfigError."""
    path = tmp_path / "run.yaml"
    path.write_text("student: s\nteacher: t\noutput: o\ndata: {sources: [{path: d.json}]}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(path, RunConfig, list(overrides))


def test_methods_stages_losses_and_terms_fit_together() -> None:
    for method in METHODS.values():
        assert method.stages and all(name in STAGES for name in method.stages)
    for name, stage in STAGES.items():
        assert stage.losses and set(stage.losses) <= set(LOSSES), name
        assert set(stage.weights) <= set(stage.terms), name
        assert stage.trains, name
        # A Recalibrator trains where its losses are, and nowhere else.
        assert ("recalibrator" in stage.trains) == stage.recalibrates, name
    used = {name for method in METHODS.values() for name in method.stages}
    assert used == set(STAGES)
    assert {term for loss in LOSSES.values() for term in loss.terms} == set(TERMS)
    assert len(TERMS) == sum(len(loss.terms) for loss in LOSSES.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_needs_what_its_stages_read(method: str) -> None:
    reads = any(STAGES[name].reads_teacher for name in METHODS[method].stages)
    needs = METHODS[method].needs != "nothing"
    assert needs == (reads or METHODS[method].labels == "teacher")
    assert config(method=method).reads_teacher == reads
    without = {key: value for key, value in MINIMAL.items() if key != "teacher"}
    if needs:
        with pytest.raises(ValueError, match=f"the method '{method}' needs a teacher"):
            RunConfig.model_validate(without | {"method": method})
    else:
        assert RunConfig.model_validate(without | {"method": method}).sources == ()


def test_the_papers_form_is_the_default() -> None:
    plain = config()
    assert plain.plan("recalibrate") == STAGES["recalibrate"]
    assert plain.plan("distill") == STAGES["distill"]
    assert plain.recalibrator.model_dump() == {
        "blocks": 2,
        "layers": (1.0,),
        "answer_input": "features",
        "answer_dropout": 0.0,
        "answer_delay": 0,
        "question_projector": "shared",
        "init": "fresh",
        "norm": "layernorm",
    }
    assert plain.objective.first_token and plain.learned_labels == "given"


def test_stage_2_keeps_regularization_and_freezes_the_recalibrator_when_asked() -> None:
    kept = config(objective={"regularize_in_distill": True}).plan("distill")
    assert kept.losses == ("align", "sft", "regularize") and kept.trains == STAGES["distill"].trains
    assert kept.terms == ("ar", "kl", "sft", "reg_ar", "reg_kl")
    frozen = config(objective={"recalibrator_in_distill": "freeze"})
    assert frozen.plan("distill").trains == ("student_lora",)
    assert frozen.plan("distill").losses == STAGES["distill"].losses
    assert frozen.plan("recalibrate") == STAGES["recalibrate"]
    both = {"regularize_in_distill": True, "recalibrator_in_distill": "freeze"}
    assert config(objective=both).plan("finetune") == STAGES["finetune"]
    assert config(objective=both).plan("recalibrate-no-reg") == STAGES["recalibrate-no-reg"]


def test_answers_alone_have_no_image_losses() -> None:
    whole, answers = config(method="llava-kd"), config(method="llava-kd", answer_only=True)
    for name in METHODS["llava-kd"].stages:
        assert set(whole.plan(name).losses) - set(answers.plan(name).losses) == (
            {"visual_kl", "relation"} if name != "kd-sft" else set()
        )
    assert config(method="minillm", answer_only=True).plan("distill-reverse-kl").losses == (
        "reverse_kl",
        "sft",
    )


def test_weights_join_the_stages_own() -> None:
    given = config(method="llava-kd", stages={"kd-pretrain": {"weights": {"visual_kl": 2.0}}})
    assert given.plan("kd-pretrain").weights == {"relation": 0.5, "visual_kl": 2.0}
    given = config(method="llava-kd", stages={"kd-pretrain": {"weights": {"relation": 0.0}}})
    assert given.plan("kd-pretrain").weights == {"relation": 0.0}
    assert given.plan("kd-finetune").weights == {"relation": 0.5}
    # Terms that only an option brings can be weighed too.
    regular = config(
        objective={"regularize_in_distill": True}, stages={"distill": {"weights": {"reg_kl": 0.5}}}
    )
    assert regular.plan("distill").weights == {"reg_kl": 0.5}


def test_teachers_however_they_are_named() -> None:
    (alone,) = config().sources
    assert (alone.path, alone.weight, alone.domains) == (Path("teacher"), 1.0, None)
    both = [{"path": "one", "weight": 0.5}, {"path": "two", "domains": ["knowledge"]}]
    several = RunConfig.model_validate(
        {key: value for key, value in MINIMAL.items() if key != "teacher"} | {"teachers": both}
    )
    assert [source.path.name for source in several.sources] == ["one", "two"]
    assert several.sources[1].domains == ("knowledge",)


def test_configs_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    two = "teachers=[{path: one}, {path: two}]"
    for message, *overrides in (
        ("unknown method 'genrecall'; known are genrecal, ", "method=genrecall"),
        ("unknown stage 'destill'; known are recalibrate, ", "stages.destill.epochs=1"),
        ("unknown loss term 'klar'", "stages.distill.weights={klar: 1}"),
        ("unknown term of distill: 'uld'; known are ar, kl, sft", "stages.distill.weights={uld: 1}"),
        ("unknown term of finetune: 'kl'; known are sft", "stages.finetune.weights={kl: 1}"),
        ("unknown domain 'art'", "stages.distill.exclude_domains=[art]"),
        ("unknown domain 'art'", "teacher=null", "teachers=[{path: one, domains: [art]}]"),
        ("give teacher or teachers, not both", two),
        ("needs a teacher", "teacher=null"),
        ("needs a teacher", "teacher=null", "method=sft", "labels=teacher"),
        *(
            (
                f"answer_only is for minillm, distillm, llava-kd; the method '{method}' has no such variant",
                "answer_only=true",
                f"method={method}",
            )
            for method in METHODS
            if METHODS[method].needs != "token_types"
        ),
        ("the method 'gold' takes one teacher", "teacher=null", "method=gold", two),
        (
            "the method 'minillm' takes its teacher for all domains",
            "teacher=null",
            "method=minillm",
            "teachers=[{path: one, domains: [knowledge]}]",
        ),
        ("recalibrator.layers", "recalibrator.layers=[0.5, 1.5]"),
        ("recalibrator.layers", "recalibrator.layers=[]"),
        ("recalibrator.answer_dropout", "recalibrator.answer_dropout=1"),
        ("objective.skew", "objective.skew=1"),
    ):
        refused(tmp_path, message, *overrides)
