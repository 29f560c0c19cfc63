"""A run's data are compared with what it started with, by what they hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from genrecal.core.errors import DataError
from genrecal.data.mixture import MixtureConfig, read_mixture
from genrecal.data.unchanged import NAME, note_data, require_same_data
from tests.data.test_mixture import row, write


@pytest.fixture
def data(tmp_path: Path) -> MixtureConfig:
    sources = [write(tmp_path / f"{name}.json", [row(number) for number in range(4)]) for name in "ab"]
    ids = write(tmp_path / "ids.json", ["r1"])
    return MixtureConfig(sources=tuple({"path": path} for path in sources), exclude_ids=ids)


def checked(data: MixtureConfig, run: Path, **options: Any) -> None:
    require_same_data(run, read_mixture(data.model_copy(update=options), cache=run / "tables"), data)


@pytest.fixture
def run(data: MixtureConfig, tmp_path: Path) -> Path:
    """The folder of a run that has started."""
    folder = tmp_path / "run"
    checked(data, folder)  # one that has written nothing down goes on
    note_data(folder, read_mixture(data, cache=folder / "tables"), data)
    return folder


def test_what_leaves_the_data_as_they_are(data: MixtureConfig, run: Path, tmp_path: Path) -> None:
    os.utime(tmp_path / "a.json", (1, 1))
    (tmp_path / "b.json").write_text(json.dumps([row(number) for number in range(4)], indent=2))
    (tmp_path / "ids.json").write_text('{"ids": [ "r1" ], "samples": []}')
    checked(data, run)
    checked(data, run, cache=tmp_path / "other tables", on_bad="skip", max_bad=7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [row(k) for k in range(5)], "since the run started: then it holds 4 samples, now 5"),
        ("b.json", [row(k) for k in (1, 0, 2, 3)], "it holds 4 samples, but other ones"),
        ("b.json", [row(0), row(1), row(2), row(3, answer="no!")], "it holds 4 samples, but other ones"),
        ("b.json", [row(0), row(1), row(2), row(3, domain="general_vqa")], "it holds 4 samples, but other"),
        ("ids.json", ["r1", "r2"], "since the run started: then it leaves 6 samples, now 4"),
        ("ids.json", ["r2"], "it leaves 6 samples, but other ones"),
    ],
)
def test_what_changed_is_named(
    name: str, content: list[Any], message: str, data: MixtureConfig, run: Path, tmp_path: Path
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        checked(data, run)
    assert str(caught.value).startswith(f"{tmp_path / name}: has changed since") and "\n" not in str(
        caught.value
    )
    note_data(run, read_mixture(data), data)
    with pytest.raises(DataError, match=message):  # what it started with stays written down
        checked(data, run)
    (run / NAME).unlink()
    checked(data, run)
