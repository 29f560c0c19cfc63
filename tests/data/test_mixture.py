"""Several sources as one sequence: tables built once, bad rows within a budget, and what is left out."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from genrecal.core.config import parse_config
from genrecal.core.errors import ConfigError, DataError
from genrecal.core.types import DOMAINS
from genrecal.data.bad import journal_lines
from genrecal.data.cache import BAD
from genrecal.data.cache_writer import SAMPLE_BATCH
from genrecal.data.mixture import IMAGE_CHARACTERS, Mixture, MixtureConfig, read_mixture, without_domains
from genrecal.data.order import Part
from genrecal.data.references import STORED_BATCH
from tests.data.test_formats import data_uri


def row(number: int, *, domain: str = "knowledge", answer: str = "yes", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"is it {number}?"}, {"from": "gpt", "value": answer}]
    return {"id": f"r{number}", "domain": domain, "conversations": turns, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def config(*paths: Path, **options: Any) -> MixtureConfig:
    return MixtureConfig(sources=tuple({"path": path} for path in paths), **options)


def ids(mixture: Any) -> list[str]:
    return [sample.id for sample in mixture]


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Four rows, one of each domain."""
    return write(tmp_path / "four.json", [row(k, domain=domain) for k, domain in enumerate(DOMAINS)])


def test_sources_follow_each_other(four: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", [row(k) for k in range(4, 7)])
    mixture = read_mixture(config(four, other))
    assert ids(mixture) == [f"r{k}" for k in range(7)] and len(mixture) == 7
    assert mixture[-1].id == "r6" and ids(mixture[1:3]) == ["r1", "r2"]
    assert mixture[4].source == str(other) and mixture[3].source == str(four)
    assert mixture.parts == (Part(samples=4), Part(samples=3))
    assert mixture.domains.tolist() == [0, 1, 2, 3, 1, 1, 1]
    with pytest.raises(IndexError):
        mixture[7]


def test_lengths_count_text_and_images(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shown = row(0, image="a.png")
    shown["conversations"][0]["value"] = "<image>what?"
    mixture = read_mixture(config(write(tmp_path / "d.json", [shown, row(1)])))
    assert mixture.lengths.tolist() == [len("<image>what?yes") + IMAGE_CHARACTERS, len("is it 1?yes")]


def test_a_batch_border_and_a_stored_image_of_any_batch(tmp_path: Path) -> None:
    rows = []
    for number in range(SAMPLE_BATCH + 5):
        one = row(number)
        if number % 10 == 0:
            one["conversations"][0]["value"] = "<image>what?"
            one["image"] = data_uri(number, 0)
        rows.append(one)
    mixture = read_mixture(config(write(tmp_path / "d.json", rows)))
    assert len(rows) // 10 > 2 * STORED_BATCH
    for number in (0, 320, SAMPLE_BATCH - 1, SAMPLE_BATCH, SAMPLE_BATCH + 4, 1020):
        assert mixture[number].id == f"r{number}"
        if number % 10 == 0:
            assert data_uri(number, 0).endswith(_base64(mixture[number].images[0].read()))
            assert str(mixture[number].images[0]) == f"{tmp_path / 'd.json'} row {number} image 0"


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_a_view_of_a_view(four: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", [row(k, domain="general_vqa") for k in range(4, 7)])
    mixture = read_mixture(config(four, other))
    assert without_domains(mixture, ()) is mixture
    kept = without_domains(mixture, ("knowledge",))
    assert ids(kept) == ["r0", "r2", "r3", "r4", "r5", "r6"]
    assert kept.parts == (Part(samples=3), Part(samples=3))
    fewer = without_domains(kept, ("general_vqa",))
    assert ids(fewer) == ["r2", "r3"] == ids(pickle.loads(pickle.dumps(fewer)))
    assert fewer.parts == (Part(samples=2),) and len(fewer.lengths) == 2
    with pytest.raises(DataError, match="no sample is left without the domains science_math, chart_document"):
        without_domains(fewer, ("science_math", "chart_document"))


FIGURE_10 = """
w.o. Knowledge: {exclude_domains: [knowledge]}
w.o. Science & Math: {exclude_domains: [science_math]}
w.o. Chart & Document: {exclude_domains: [chart_document]}
"""


@pytest.mark.parametrize("name", yaml.safe_load(FIGURE_10))
def test_figure_10_is_one_line_for_each_run(name: str, four: Path) -> None:
    line = yaml.safe_load(FIGURE_10)[name]
    data = parse_config({"sources": [{"path": four}], **line}, MixtureConfig, where="figure 10")
    kept = {sample.domain for sample in read_mixture(data)}
    assert kept == set(DOMAINS) - set(line["exclude_domains"]) and len(kept) == 3


def test_settings_that_are_none(four: Path) -> None:
    for wrong, message in (
        ({"sources": []}, "sources"),
        ({"sources": [{"path": "a", "domain": "cooking"}]}, "unknown domain 'cooking'"),
        ({"sources": [{"path": "a", "weight": 0}]}, "weight"),
        ({"sources": [{"path": "a", "format": "xml"}]}, "format"),
        ({"sources": [{"path": "a"}], "exclude_domains": ["cooking"]}, "unknown domain 'cooking'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(wrong, MixtureConfig, where="here")


def test_excluded_ids(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [row(k) for k in range(5)])
    turns = [*row(1)["conversations"], *row(2)["conversations"]]
    second = write(tmp_path / "b.json", [row(k, conversations=turns) for k in range(5)])
    everywhere, own = tmp_path / "all.json", tmp_path / "own.json"
    everywhere.write_text(json.dumps({"ids": ["r1", 77], "samples": []}))
    own.write_text(json.dumps(["r0", "r2#1"]))
    sources = ({"path": first}, {"path": second, "turns": "each", "exclude_ids": own})
    mixture = read_mixture(MixtureConfig(sources=sources, exclude_ids=everywhere))
    assert ids(mixture)[:4] == ["r0", "r2", "r3", "r4"]
    assert ids(mixture)[4:] == ["r2#2", "r3#1", "r3#2", "r4#1", "r4#2"]
    own.write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"own.json: holds no list of ids"):
        read_mixture(MixtureConfig(sources=sources))


def test_nothing_is_left(four: Path, tmp_path: Path) -> None:
    write(tmp_path / "ids.json", ["r0", "r1", "r2", "r3"])
    with pytest.raises(DataError, match="no sample is left"):
        read_mixture(config(four, exclude_ids=tmp_path / "ids.json"))
    with pytest.raises(DataError, match="no sample is left"):
        read_mixture(MixtureConfig(sources=({"path": four, "weight": 0.01},)))


def change(path: Path, rows: list[Any], *, unseen: bool) -> None:
    """Write other rows, under the same size and time if `unseen`."""
    before = path.stat()
    write(path, rows)
    if unseen:
        assert path.stat().st_size == before.st_size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_table_is_built_once_for_what_it_depends_on(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "d.json", [row(1), row(2)]), tmp_path / "cache"
    assert ids(read_mixture(config(path), cache=cache)) == ["r1", "r2"]
    change(path, [row(3), row(4)], unseen=True)
    assert ids(read_mixture(config(path), cache=cache)) == ["r1", "r2"]  # nobody read the file
    weighted = MixtureConfig(sources=({"path": path, "weight": 2.0},))
    assert read_mixture(weighted, cache=cache).parts == (Part(samples=2, weight=2.0),)
    each = MixtureConfig(sources=({"path": path, "turns": "each"},))
    assert ids(read_mixture(each, cache=cache)) == ["r3#1", "r4#1"]
    os.utime(path, (1, 1))
    assert ids(read_mixture(config(path), cache=cache)) == ["r3", "r4"]
    assert len(list(cache.glob("d-*/"))) == 3
    assert ids(read_mixture(config(path, cache=cache / "other"), cache=cache)) == ["r3", "r4"]
    assert len(list((cache / "other").glob("d-*/"))) == 1


def test_a_build_that_was_killed_leaves_nothing(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "d.json", [row(1)]), tmp_path / "cache"
    mixture = read_mixture(config(path), cache=cache)
    (folder,) = cache.glob("d-*/")
    killed = cache / f".{folder.name}.abc"
    folder.rename(killed)
    assert ids(read_mixture(config(path), cache=cache)) == ["r1"]
    assert not killed.exists() and ids(mixture) == ["r1"]


def test_processes_that_start_together_build_one_table(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "d.json", [row(k) for k in range(3000)]), tmp_path / "cache"
    program = (
        "import sys; from pathlib import Path; from genrecal.data.mixture import *\n"
        "a = read_mixture([SourceConfig(path=Path(sys.argv[1]))], cache=Path(sys.argv[2]))\n"
        "print(len(a), a[2999].id)\n"
    )
    command = [sys.executable, "-c", program, str(path), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["3000 r2999\n"] * 2
    assert len(list(cache.glob("d-*/"))) == 1


@pytest.fixture
def spotted(tmp_path: Path) -> Path:
    """Six rows, two of them bad."""
    rows = [row(0), row(1, answer=" "), row(2), row(3, image="gone.png"), row(4), row(5)]
    rows[3]["conversations"][0]["value"] = "<image>what?"
    return write(tmp_path / "spotted.json", rows)


def test_bad_rows_are_skipped_and_written_down(spotted: Path, tmp_path: Path) -> None:
    skipping = config(spotted, on_bad="skip", max_bad=2)
    for _ in range(2):  # built, then found in the cache
        mixture = read_mixture(skipping, cache=tmp_path / "cache")
        assert ids(mixture) == ["r0", "r2", "r4", "r5"] and mixture.skipped == 2
    (journal,) = (tmp_path / "cache").glob(f"*/{BAD}")
    one, two = journal_lines(journal)
    assert (one["row"], one["id"], one["what"]) == (1, "r1", "has an empty answer")
    assert (two["row"], two["what"]) == (3, "no such image") and two["where"] == str(tmp_path / "gone.png")


@pytest.mark.parametrize("cached", [False, True])
def test_more_bad_rows_than_the_budget_stop_it(spotted: Path, tmp_path: Path, cached: bool) -> None:
    if cached:
        read_mixture(config(spotted, on_bad="skip", max_bad=2), cache=tmp_path / "cache")
    with pytest.raises(
        DataError, match=r"2 rows cannot be used, max_bad is 1: .* row 1: has an empty answer"
    ):
        read_mixture(config(spotted, on_bad="skip", max_bad=1), cache=tmp_path / "cache")


def test_a_mended_row_is_read_again_where_bad_rows_stop(spotted: Path, tmp_path: Path) -> None:
    rows = json.loads(spotted.read_text())
    del rows[1]
    write(spotted, rows)
    cache = tmp_path / "cache"
    for _ in range(2):
        with pytest.raises(DataError, match=r"gone.png: no such image. Sample 'r3' of"):
            read_mixture(config(spotted), cache=cache)
    Image.new("RGB", (8, 8)).save(tmp_path / "gone.png")
    assert len(read_mixture(config(spotted), cache=cache)) == 5


def test_a_temporary_table_goes_with_its_mixture(four: Path) -> None:
    mixture: Mixture | None = read_mixture(config(four))
    assert mixture is not None
    folder = mixture.tables[0].folder
    view = without_domains(mixture, ("knowledge",))
    del mixture
    assert folder.is_dir() and len(view) == 3
    del view
    assert not folder.exists()


def test_the_arrays_are_small(tmp_path: Path) -> None:
    mixture = read_mixture(config(write(tmp_path / "d.json", [row(k) for k in range(100)])))
    held = sum(column.nbytes for column in mixture.tables[0].columns.values())
    assert held == 7 * len(mixture) and mixture.domains.dtype == np.uint8
