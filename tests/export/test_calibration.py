"""Questions of a run's training data: two parts that share none, and nothing where there is no run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from genrecal.core.manifest import write_manifest
from genrecal.demo.datasets import write_training_set
from genrecal.export import calibration
from genrecal.export.calibration import training_queries
from genrecal.train.settings import DataConfig


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_training_set(tmp_path / "data", seed=0, images=40, split="distill")
    sources = [{"path": str(tmp_path / "data" / "conversations.json")}]
    folder = tmp_path / "run"
    folder.mkdir()
    data = DataConfig.model_validate({"sources": sources, "max_tokens": 512})
    write_manifest(folder, kind="run", config={"data": data.model_dump(mode="json")})
    return folder


def test_calibration_and_report_share_no_question(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CALIBRATED", 16)
    monkeypatch.setattr(calibration, "REPORTED", 8)
    found = training_queries(run)
    assert found is not None
    assert len(found.report) == 8 and len(found.calibration) == 16
    for query in (*found.report, *found.calibration):
        assert isinstance(query[0], Image.Image) and isinstance(query[-1], str)
        assert "<image>" not in query[-1]
    pictures = [{query[0].tobytes() for query in part} for part in (found.report, found.calibration)]
    assert not pictures[0] & pictures[1]


def test_what_is_no_run_or_has_lost_its_data_has_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training_queries(tmp_path / "data") is None
    (tmp_path / "data" / "conversations.json").rename(tmp_path / "elsewhere.json")
    assert training_queries(run) is None
    assert "cannot be read here" in " ".join(capsys.readouterr().out.split())
