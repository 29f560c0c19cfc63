"""The command: files, a page that needs nothing from anywhere, and a line for what is missing."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from genrecal.figures.draw import FIGURES, draw_figures
from genrecal.figures.runs import open_runs
from tests.figures.sample_runs import write_bench, write_run


class Tags(HTMLParser):
    """Collects tags, ids and what the page points to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src") and value:
                self.targets.append(value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    student = root / "models" / "small"
    write_bench(root / "models" / "small-bench", {"mmb": 0.4, "mmmu": 0.3}, subject=str(student))
    return [
        write_run(root / "a <b>", teacher="A", student=student, after={"mmb": 0.45, "mmmu": 0.33}),
        write_run(root / "b", teacher="B & co", student=student, after={"mmb": 0.43, "mmmu": 0.31}),
    ]


@pytest.fixture(scope="module")
def drawn(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The command's output folder and what it printed."""
    output = tmp_path_factory.mktemp("figures")
    result = CliRunner().invoke(cli.app, ["figures", *map(str, folders), "--output", str(output)])
    assert result.exit_code == 0, result.output
    return output, result.output


def test_every_figure_has_its_files(drawn: tuple[Path, str]) -> None:
    output, printed = drawn
    expected = {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "csv")}
    assert {path.name for path in output.iterdir()} == expected | {"figures.html"}
    for name in FIGURES:
        with Image.open(output / f"{name}.png") as image:
            assert image.width > 600 and len(image.convert("L").getcolors(256) or []) > 20
        root = ElementTree.parse(output / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        with (output / f"{name}.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert rows and all(None not in row.values() for row in rows)
        assert f"{name}: " in printed
    assert "8 figures: " in printed and "skipped" not in printed


def test_the_page_holds_all_and_needs_nothing(drawn: tuple[Path, str]) -> None:
    page = (drawn[0] / "figures.html").read_text(encoding="utf-8")
    found = Tags()
    found.feed(page)
    assert found.tags.count("svg") == len(FIGURES) == found.tags.count("figure")
    assert len(found.ids) == len(set(found.ids))  # ids of the SVGs do not meet
    outside = [
        one for one in found.targets if not one.startswith(("#", "data:")) and not one.endswith(".csv")
    ]
    assert outside == [] and "http" not in re.sub(r'xmlns\S*"', "", page)
    for target in found.targets:
        if target.startswith("#"):
            assert target[1:] in found.ids
        elif target.endswith(".csv"):
            assert (drawn[0] / target).is_file()
    # One style element, of the page; the names of runs are text.
    assert found.tags.count("style") == 1
    assert "a &lt;b&gt;" in page and "B &amp; co" in page and "<b>" not in page


def test_drawn_again_they_are_the_same_and_fit_into_other_pages(
    folders: list[Path], drawn: tuple[Path, str]
) -> None:
    """What the demo's report includes takes the page's colour and names its ids after the figure."""
    figures, skipped = draw_figures(open_runs(folders), formats=("svg",))
    assert not skipped
    for one in figures:
        assert one.files == {"svg": (drawn[0] / f"{one.name}.svg").read_bytes()}
        root = ElementTree.fromstring(str(one.svg))
        assert root.get("width") is None and root.get("viewBox")
        assert "currentColor" in one.svg and "#010203" not in one.svg
        ids = [str(element.get("id")) for element in root.iter() if element.get("id")]
        assert ids and all(name.startswith(f"{one.name}-") for name in ids)


def test_what_is_missing_is_said_and_the_rest_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="sft", metrics=False)
    result = CliRunner().invoke(
        cli.app, ["figures", str(run), "--output", str(tmp_path / "out"), "--format", "svg"]
    )
    assert result.exit_code == 0, result.output
    lines = {line.partition(":")[0]: line for line in result.output.splitlines()}
    assert lines["figure-9-losses"].startswith("figure-9-losses: skipped: ")
    assert "has no metrics.jsonl. `genrecal distill` writes it" in lines["reading"]
    assert "no run left features" in lines["figure-7-cosine"]
    assert "1 figures: " in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"figure-10-progress.svg", "figure-10-progress.csv", "figures.html"}
    assert "no run left features" in (tmp_path / "out" / "figures.html").read_text()


def test_nothing_to_draw_and_wrong_words_are_errors(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="sft", metrics=False, points=False)

    def line(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["figures", *arguments, "--output", str(tmp_path / "out")])
        assert result.exit_code == 2
        return result.stderr

    assert "no figure could be drawn" in line(str(run))
    assert "unknown format 'pdf'. Name svg or png" in line(str(run), "--format", "pdf")
    assert "is no run" in line(str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_baseline_elsewhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics=False, features=False, points=False, after={"mmb": 0.5})
    bench = write_bench(tmp_path / "before", {"mmb": 0.45}, subject="models/Qwen2-VL-2B")
    result = CliRunner().invoke(
        cli.app, ["figures", str(run), "--output", str(tmp_path / "out"), "--baseline", str(bench)]
    )
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "out" / "figure-1-students.csv").read_text().splitlines()))
    assert [(row["series"], row["score_percent"]) for row in rows] == [("before", "45"), ("genrecal", "50")]
    assert rows[1]["gain_points"] == "5"
