"""Which method serves which pair: said with a reason, before a rank starts or a weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genrecal.core.config import dump_config
from genrecal.core.errors import ConfigError, DataError, GenrecalError
from genrecal.core.files import write_text
from genrecal.core.manifest import NAME
from genrecal.data.mixture import read_mixture
from genrecal.data.unchanged import note_data
from genrecal.data.vocabulary import shared_ids
from genrecal.models.processors import load_model, load_processor
from genrecal.train.launch import distill
from genrecal.train.pairing import comparison_settings, pair_table
from genrecal.train.run import check_run
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS
from tests.kin import Kin
from tests.tiny import TinyData, TinyPair

ANY_PAIR = ("genrecal", "genrecal-no-reg", "genrecal-through", "seqkd", "uld", "gold")
SAME_TYPES = ("minillm", "distillm", "llava-kd")
NO_TEACHER = ("sft", "finetune")


@pytest.fixture(scope="module")
def folders(tiny_pair: TinyPair, kin: Kin, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Students and the teacher with files of weights that nobody can read."""
    root = tmp_path_factory.mktemp("broken")
    given = {"teacher": tiny_pair.teacher, "cross": tiny_pair.student, "twin": kin.twin, "tiles": kin.tiles}
    for name, folder in given.items():
        shutil.copytree(folder, root / name)
        (root / name / "model.safetensors").write_bytes(b"no weights")
    return {name: root / name for name in given}


@pytest.fixture
def run_config(folders: dict[str, Path], tiny_data: TinyData, tmp_path: Path) -> Any:
    def make(student: str, **settings: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "student": folders[student],
                "teacher": folders["teacher"],
                "output": tmp_path / "run",
                "data": {"sources": [{"path": tiny_data.path}]},
                "engine": {"ranks": 1},
            }
            | settings
        )

    return make


def test_check_run_sees_other_data_than_the_run_began_with(
    run_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": str(place), "domain": "knowledge", "question": "a?", "answer": "b"} for place in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "ids.json").write_text('["0", "gone"]')
    sources = [{"path": tmp_path / "rows.json", "exclude_ids": tmp_path / "ids.json"}]
    config = run_config("cross", data={"sources": sources})
    config.output.mkdir()
    write_text(config.output / "config.yaml", dump_config(config))
    note_data(config.output, read_mixture(config.data), config.data)
    check_run(config)
    assert "no row bears 1 of its 2 ids, 'gone' for one" in capsys.readouterr().out
    (tmp_path / "ids.json").write_text('["1"]')
    with pytest.raises(DataError, match=r"ids.json: has changed since the run started"):
        check_run(config)
    (config.output / NAME).write_text("{}")  # finished: nothing will be read again
    check_run(config)


def test_every_method_is_one_of_these() -> None:
    assert {*ANY_PAIR, *SAME_TYPES, *NO_TEACHER} == set(METHODS)


def test_the_table_of_figure_8(folders: dict[str, Path]) -> None:
    students = [folders[name] for name in ("cross", "twin", "tiles")]
    rows = pair_table([folders["teacher"]], students)
    assert [(row.teacher, row.student) for row in rows] == [(folders["teacher"], one) for one in students]
    cross, twin, tiles = (row.refusals for row in rows)
    assert set(cross) == {*ANY_PAIR, *SAME_TYPES, *(f"{name}†" for name in SAME_TYPES)}
    for name in ANY_PAIR:
        assert cross[name] is twin[name] is tiles[name] is None
    for name in SAME_TYPES:
        assert twin[name] is None and twin[f"{name}†"] is None
        assert tiles[name] is not None and tiles[name].startswith(
            "the image tokens differ (a question about 64x64 pixels is "
        )
        assert tiles[f"{name}†"] is None
        for refused in (cross[name], cross[f"{name}†"]):
            assert refused is not None and refused.startswith("the tokenizers differ ('The quick brown")


@pytest.mark.parametrize(
    ("method", "answer_only"),
    [*((method, False) for method in METHODS), *((method, True) for method in SAME_TYPES)],
)
@pytest.mark.parametrize("student", ["cross", "twin", "tiles"])
def test_check_run_before_any_weight(run_config: Any, method: str, student: str, answer_only: bool) -> None:
    config = run_config(student, method=method, answer_only=answer_only)
    served = method not in SAME_TYPES or student == "twin" or (student == "tiles" and answer_only)
    if served:
        check_run(config)
        return
    with pytest.raises(ConfigError) as caught:
        check_run(config)
    said = str(caught.value)
    assert f"{method} cannot serve this pair: the " in said
    if student == "cross":
        assert "the tokenizers differ" in said and "Take genrecal, seqkd, uld or gold" in said
    else:
        assert "the image tokens differ" in said and "Set answer_only: true" in said


def test_a_refused_run_starts_no_rank_and_leaves_nothing(run_config: Any) -> None:
    """`distill` would fail on the weights, with another error, if it came so far."""
    config = run_config("cross", method="minillm")
    with pytest.raises(ConfigError, match="minillm cannot serve this pair"):
        distill(config)
    assert not config.output.exists()


def test_the_fixtures_weights_cannot_be_read(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        with pytest.raises(GenrecalError, match="its model cannot be loaded"):
            load_model(folder)


def test_settings_of_the_comparison_methods(run_config: Any, folders: dict[str, Path]) -> None:
    student, teacher = (load_processor(folders[name]) for name in ("cross", "teacher"))
    config = run_config("cross", method="gold", objective={"skew": 0.3})
    found = comparison_settings(config, config.plan("distill-gold"), student, [teacher])
    assert (found.answer_only, found.skew) == (False, 0.3)
    assert found.image_token_id == student.tokenizer.convert_tokens_to_ids("<|image_pad|>") != -1
    expected = shared_ids(student, teacher)
    assert found.shared_ids is not None
    assert all(torch.equal(one, other) for one, other in zip(found.shared_ids, expected, strict=True))
    # Only GOLD needs them; a stage without a teacher has none to compare with.
    assert comparison_settings(config, config.plan("finetune"), student, []).shared_ids is None
    answers = run_config("tiles", method="minillm", answer_only=True)
    tiles = load_processor(folders["tiles"])
    assert comparison_settings(answers, answers.plan("distill-reverse-kl"), tiles, [teacher]).answer_only
