"""What a board takes for a stretch of answers, as it goes over a line of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edge import watching
from edge.answer import _read
from edge.watching import Watched, Watching, from_json
from genrecal.core.errors import DataError
from tests.edge.jetson.trees import meminfo, orin_nano, put


def test_a_stretch_goes_over_as_json_and_comes_back_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "IDLE_S", 0.2)
    root = orin_nano(tmp_path)
    watched = Watching(root)
    put(root, {"proc/meminfo": meminfo(7_800_000, 1_500_000, nvmap=4_000_000, cma=10_000)})
    time.sleep(0.2)
    watched.begin()
    time.sleep(0.3)
    found = json.loads(json.dumps(watched.end()))
    whole, work = from_json(found["whole"]), from_json(found["work"])
    assert work.energy is not None and work.energy.rule == "VDD_IN"
    assert work.energy.mean_w == pytest.approx(5.0) and work.energy.idle_w == pytest.approx(5.0)
    # Memory from before the build was opened; in the stretch itself nothing more was taken.
    assert whole.memory_bytes is not None and whole.memory_bytes > 1e9 and work.memory_bytes == 0
    assert whole.board is not None and "power mode" in whole.board and whole.throttling == "none"
    assert watched.end() == {"whole": None, "work": None}


def test_begun_again_the_stretch_is_the_last_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "IDLE_S", 0.1)
    watched = Watching(orin_nano(tmp_path))
    watched.begin()
    time.sleep(1.0)
    watched.begin()
    time.sleep(0.2)
    work = from_json(watched.end()["work"])
    assert work.energy is not None and work.energy.seconds < 1.0


def test_elsewhere_nothing_is_measured(tmp_path: Path) -> None:
    watched = Watching(tmp_path)
    watched.begin()
    found = watched.end()
    assert found == {"whole": None, "work": None} and from_json(found["work"]) == Watched()


@pytest.mark.parametrize(
    "more", [{"watch": "now"}, {"watch": ["begin"]}, {"watch": "begin", "parts": []}, {}]
)
def test_what_is_neither_a_question_nor_a_stretch_is_refused(more: dict) -> None:
    with pytest.raises(DataError, match="line 3 is no question"):
        _read(json.dumps({"id": "1", **more}).encode(), 3)
