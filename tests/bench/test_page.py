"""The report's files: what they hold, how large they grow, and that an answer stays text."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

import bench.page
from bench.against import report_command
from bench.frontier import COSTS, Point
from bench.page import DATA, MARKDOWN, MOST_BYTES, PAGE, open_benches, write_page
from bench.plots import number, plot, steps
from bench.samples import collect, cut
from bench.thumbnails import MOST_BYTES as MOST_OF_ONE
from bench.thumbnails import Thumbnails, thumbnail
from genrecal.core.errors import BenchError
from tests.bench.scripted import HOSTILE


def test_files_and_their_figures(benches, tmp_path):
    data = write_page(open_benches(benches), tmp_path)
    assert json.loads(json.dumps(data)) == json.loads((tmp_path / DATA).read_text())
    assert data["format"] == 1 and data["baseline"] == "student" and data["gate"] is None
    assert [one["name"] for one in data["subjects"]] == ["student", "int8", "int4"]
    scores = data["subjects"][1]["scores"]
    assert scores["mmb"]["score"] == 0.5 and scores["mmmu"]["n"] == 12
    assert scores["mmmu"]["score"] == pytest.approx(10 / 12)
    assert scores["mmmu"]["low"] < 10 / 12 < scores["mmmu"]["high"]
    # Every MMMU question has the same image, so they are one cluster.
    assert scores["mmmu"]["clusters"] == 1 and scores["mmmu"]["groups"]["subject"]["Art"]["n"] == 6
    found = {(one["subject"], one["benchmark"]): one for one in data["differences"]}
    assert found["int8", "mmmu"]["mean"] == pytest.approx(-1 / 12)
    assert found["int8", "mmmu"]["table"] == {"both": 9, "only_one": 1, "only_other": 2, "neither": 0}
    assert found["int4", "mmvet"]["mcnemar_p"] == 1.0 and found["int4", "mmvet"]["table"]["only_other"] == 1
    front = data["frontier"]
    assert front["benchmarks"] == ["mmb", "mmvet", "mmmu"] and front["energy"] == []
    assert {point["name"]: point["best"] for point in front["latency"]} == {
        "int8": True,
        "int4": False,
        "student": True,
    }
    assert data["samples"] == {
        "questions": 16,
        "shown": 16,
        "left_out": 0,
        "shown_with_images_left_out": 0,
        "notes": [],
    }


def test_the_page_asks_no_network_and_hostile_answers_stay_text(benches, tmp_path):
    write_page(open_benches(benches), tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "http://" not in page and "https://" not in page
    assert HOSTILE not in page and "document.title='taken'</script>" not in page
    assert page.count("<script") == 2 and len(page) < MOST_BYTES
    markdown = (tmp_path / MARKDOWN).read_text()
    assert markdown.startswith("### int4 against student") and "| int8 | MMMU | -8.3 |" in markdown


def test_the_most_informative_samples_come_first_and_benchmarks_take_turns(benches):
    samples = collect(open_benches(benches), room=MOST_BYTES).samples
    assert [sample["benchmark"] for sample in samples[:4]] == ["mmb", "mmvet", "mmmu", "mmmu"]
    assert samples[0]["id"] == "1" and [row["id"] for row in samples[0]["rows"]] == ["1", "1000001"]
    assert samples[0]["scores"] == [1.0, 0.0, 0.0] and samples[0]["rows"][1]["read"] == ["B", "A", "A"]
    lost = [sample["id"] for sample in samples if sample["scores"][0] == 1.0 and min(sample["scores"]) == 0]
    assert [sample["id"] for sample in samples[: len(lost)]] == lost
    unread = next(sample for sample in samples if sample["id"] == "validation_Art_7")
    assert unread["rows"][0]["replies"][1] == HOSTILE and unread["rows"][0]["read"][1] == ""
    judged = next(sample for sample in samples if sample["id"] == "v1_1")
    assert "offline rules" in judged["rows"][0]["words"][0] and judged["rows"][0]["read"] == [None] * 3


def test_a_large_bench_fills_the_page_to_its_limit_and_says_what_is_left_out(large_benches, tmp_path):
    data = write_page(open_benches(large_benches), tmp_path)["samples"]
    assert data["questions"] == 1200 and data["shown"] + data["left_out"] == 1200
    assert 200 < data["shown"] < 1200 and data["shown_with_images_left_out"] < 0.5 * data["shown"]
    page = (tmp_path / PAGE).read_text()
    assert 0.9 * MOST_BYTES < len(page.encode()) < MOST_BYTES
    assert f"{data['left_out']} were left out to keep this page small" in page


def test_where_the_tables_leave_no_room_the_samples_go_first(benches, tmp_path, monkeypatch):
    opened = open_benches(benches)
    nothing = collect(opened, room=0)
    assert (nothing.samples, nothing.left_out, nothing.total) == ([], 16, 16)
    monkeypatch.setattr(bench.page, "MOST_BYTES", 60_000)
    assert write_page(opened, tmp_path)["samples"]["shown"] == 0
    monkeypatch.setattr(bench.page, "MOST_BYTES", 9_000)
    with pytest.raises(BenchError, match="Name fewer benches"):
        write_page(opened, tmp_path)


def test_images_are_bounded_each_alone_and_all_together():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    uri = thumbnail(Image.fromarray(noise), side=480)
    assert len(uri) < MOST_OF_ONE * 4 / 3 + 50
    sources = []
    for number_ in range(6):
        stream = io.BytesIO()
        Image.fromarray(np.roll(noise, number_, axis=0)).save(stream, format="PNG")
        sources.append(stream.getvalue())
    thumbnails = Thumbnails(60_000, samples=10)
    keys = [thumbnails.add(source) for source in (*sources, sources[0])]
    assert keys[0] is not None and keys[-1] == keys[0] and None in keys
    assert sum(map(len, thumbnails.uris.values())) <= 60_000 and thumbnails.left_out == keys.count(None)


def test_a_set_that_is_gone_leaves_a_note(benches, tmp_path):
    file = benches[0] / "bench.json"
    before = file.read_text()
    content = json.loads(before)
    content["results"]["mmb"]["path"] = str(tmp_path / "gone.tsv")
    try:
        file.write_text(json.dumps(content))
        found = collect(open_benches(benches), room=MOST_BYTES)
    finally:
        file.write_text(before)
    assert found.total == 14 and "gone.tsv" in found.notes[0]


def test_a_part_of_a_set_is_shown_as_one(benches, tmp_path):
    opened = open_benches(benches[:1])
    score = opened[0].report.results["mmmu"].score
    score.details["part"] = {"questions": 12, "of": 900}
    data = write_page(opened, tmp_path)
    assert data["subjects"][0]["scores"]["mmmu"]["part_of"] == 900
    assert data["subjects"][0]["scores"]["mmb"]["part_of"] is None
    assert "<td>12 of 900</td>" in (tmp_path / PAGE).read_text()
    assert "12 of 900 questions (--limit)" in (tmp_path / MARKDOWN).read_text()


def test_the_command_prints_json_for_machines(benches, tmp_path, capsys):
    report_command(benches[:1], tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["differences"] == []
    with pytest.raises(BenchError, match="named twice"):
        report_command([benches[0], benches[0]], tmp_path)
    with pytest.raises(BenchError):
        report_command([tmp_path / "nothing"], tmp_path)


def test_drawings_stay_inside_their_frame():
    points = [Point(name="a" * 60, cost=3.0, accuracy=0.5, best=True)]
    points += [Point(name=f"b{place}", cost=3.0 + place, accuracy=0.5, best=False) for place in range(5)]
    drawn = plot(points, COSTS["latency"])
    for mark in drawn.marks:
        assert drawn.left <= mark.x <= drawn.right and drawn.top <= mark.y <= drawn.bottom
        assert len(mark.label) <= 26
    assert steps(0.0, 10.0) == (5.0, 10.0) and steps(60.0, 60.0)[0] > 0
    assert [number(value) for value in (0, 0.01234, 12.3, 1234567)] == ["0", "0.0123", "12.3", "1,234,567"]
    assert cut("abc", 3) == "abc" and cut("abcd", 3) == "abc … (1 characters more)"
