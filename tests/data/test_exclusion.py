"""What is left out by id stays out, wherever the data lie and however they are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from genrecal.core.errors import DataError
from genrecal.data.mixture import Mixture, MixtureConfig, read_mixture
from tests.data.test_mixture import config, ids, row, write

ROWS = [row(number, answer=f"answer {number}") for number in range(3)]
ASKED = "which of the bars in this chart is the highest of all?"


def nameless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != "id"} for one in rows]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def as_list(folder: Path) -> Path:
    return write(folder / "d.json", nameless(ROWS))


def as_lines(folder: Path) -> Path:
    return lines(folder / "d.jsonl", nameless(ROWS))


def as_parquet(folder: Path) -> Path:
    import pyarrow.parquet

    for number, one in enumerate(nameless(ROWS)):
        file = folder / f"tables/default/train/{number:04}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([one]), file)
    return folder / "tables"


def as_pattern(folder: Path) -> Path:
    return as_parquet(folder) / "*/train/{0000..0002}.parquet"


def as_dataset(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(nameless(ROWS)).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("written", [as_list, as_lines, as_parquet, as_pattern, as_dataset])
def test_a_row_without_an_id_has_one_name_on_every_path(
    written: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = written(data)
    found = ids(read_mixture(config(path)))
    assert len(set(found)) == len(found) >= 3 and not any(str(tmp_path) in name for name in found)
    shutil.copytree(data, tmp_path / "elsewhere/data copied")
    monkeypatch.chdir(tmp_path)
    assert ids(read_mixture(config(path.relative_to(tmp_path)))) == found
    assert ids(read_mixture(config(tmp_path / "elsewhere/data copied" / path.relative_to(data)))) == found
    if path.is_dir():
        monkeypatch.chdir(path)
        assert ids(read_mixture(config(Path(".")))) == found


def test_a_pattern_names_rows_as_its_folder_does(tmp_path: Path) -> None:
    folder = as_parquet(tmp_path)
    assert ids(read_mixture(config(folder / "default/*/*.parquet"))) != ids(read_mixture(config(folder)))
    assert ids(read_mixture(config(folder / "*/train/*.parquet"))) == ids(read_mixture(config(folder)))


def test_checked_by_absolute_path_and_trained_by_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "the red one"}]
    (tmp_path / "data").mkdir()
    path = lines(tmp_path / "data/x.jsonl", nameless([row(0), row(1, conversations=asked), row(2)]))
    test = write(tmp_path / "test.json", [{"question": ASKED}])
    arguments = ["data", "check", str(path), "--test", str(test), "--exclude", str(tmp_path / "ex.json")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(tmp_path)
    mixture = read_mixture(config(Path("data/x.jsonl"), exclude_ids=Path("ex.json")))
    assert [sample.turns[0].text for sample in mixture] == ["is it 0?", "is it 2?"] and not mixture.notes


def test_rows_of_like_files_have_names_of_their_own(tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        paths.append(lines(tmp_path / name / "train.jsonl", nameless([row(number)])))
    first, second = ids(read_mixture(config(*paths)))
    assert first != second
    write(tmp_path / "ex.json", [first])
    assert ids(read_mixture(config(*paths, exclude_ids=tmp_path / "ex.json"))) == [second]


def excluding(tmp_path: Path, names: list[str], **own: list[str]) -> Mixture:
    """Two sources with three ids each; the first has a file of its own if `own` says so."""
    sources = [
        {"path": write(tmp_path / "a.json", ROWS)},
        {"path": write(tmp_path / "b.json", [row(number) for number in range(3, 6)])},
    ]
    if own:
        sources[0]["exclude_ids"] = write(tmp_path / "own.json", own["own"])
    write(tmp_path / "all.json", names)
    return read_mixture(MixtureConfig(sources=tuple(sources), exclude_ids=tmp_path / "all.json"))


def test_ids_that_leave_nothing_out(tmp_path: Path) -> None:
    assert ids(excluding(tmp_path, [])) == [f"r{number}" for number in range(6)]
    with pytest.raises(
        DataError, match=r"all.json: leaves nothing out: no row bears one of its 2 ids, 'x' for"
    ):
        excluding(tmp_path, ["x", "y"])
    with pytest.raises(DataError, match=r"own.json: leaves nothing out"):
        excluding(tmp_path, ["r0"], own=["r3"])  # a row of the other source
    mixture = excluding(tmp_path, ["r0", "r4", "x"], own=["r1"])
    assert ids(mixture) == ["r2", "r3", "r5"]
    (note,) = mixture.only(mixture.domains >= 0).notes
    assert note.startswith(f"{tmp_path / 'all.json'}: no row bears 1 of its 3 ids, 'x' for one. ")
