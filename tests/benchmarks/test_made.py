"""What the comparison of methods makes once is used again only by the plan that it was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cells, pairs
from benchmarks.made import NAME, begin, check_made
from benchmarks.pairs import KEPT, is_kept, pretrain_set
from benchmarks.settings import load_plan
from genrecal.core.errors import ConfigError


def test_a_folder_of_an_earlier_version_is_refused_and_a_new_one_begun(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "conversations.json").write_text("[]")
    with pytest.raises(ConfigError, match=f"old: has no {NAME}, so nobody knows .* Delete it"):
        check_made(tmp_path / "old", {"images": 1})
    (tmp_path / "new").mkdir()
    assert not check_made(tmp_path / "new", {"images": 1}) and not check_made(tmp_path / "none", {})
    begin(tmp_path / "new", {"images": 1})
    assert check_made(tmp_path / "new", {"images": 1})


def test_what_a_stop_left_is_no_other_plan_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(folder: Path, **_: object) -> None:
        (folder / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs, "write_training_set", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain_set(load_plan(overrides=["pretrain_images=3"]), tmp_path)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="pretrain: was made with another plan"):
        pretrain_set(load_plan(overrides=["pretrain_images=4"]), tmp_path)
    assert pretrain_set(load_plan(overrides=["pretrain_images=3"]), tmp_path).is_file()


def test_the_committed_models_are_those_of_the_plan() -> None:
    plan = load_plan()
    kept = [path.name for path in KEPT.iterdir()]
    assert kept and all(is_kept(plan, name) for name in kept)
    other = plan.model_copy(update={"pretrain_images": plan.pretrain_images + 1})
    assert not any(is_kept(other, name) for name in kept)


def test_the_code_that_draws_the_data_is_in_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = tmp_path / "genrecal" / "demo" / "datasets.py"
    drawing.parent.mkdir(parents=True)
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    found = set()
    for text in ("a = 1", "a = 2"):
        drawing.write_text(text)
        found.add(cells.source_sha256())
    assert len(found) == 2
