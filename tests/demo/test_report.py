import base64
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from bench.judge import OfflineJudge
from genrecal.core.errors import GenrecalError
from genrecal.demo.chain import SUBJECTS
from genrecal.demo.curves import POINTS, Line, panel
from genrecal.demo.report import ROWS, write_report
from genrecal.demo.summary import print_summary, score_cell, summary_lines

HOSTILE = '<script>alert("x")</script><img src=//evil.example/x>&|'
TITLES = {"mmb": "MMB", "mmmu": "MMMU", "mmvet": OfflineJudge.title}
STEPS = 200
# Tags that a page may hold without an end tag.
VOID = {"meta", "img", "br", "hr", "link", "input"}


def png(seed):
    stream = io.BytesIO()
    Image.new("RGB", (48 + 16 * seed, 48), (40 * seed % 256, 90, 160)).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def curve(stage, terms):
    return [
        {
            "stage": stage,
            "step": step,
            "terms": {term: 2 * math.exp(-step / 60) + 0.1 + place / 20 for place, term in enumerate(terms)},
        }
        for step in range(STEPS)
    ]


def reading(stage):
    return [
        {
            "stage": stage,
            "step": step,
            "grad_distill": 0.5 + step / 1000,
            "grad_distill_first": 0.4,
            "grad_distill_later": 0.1,
            "grad_sft": 0.25,
            "kl_rise_first": 0.3 + step / 1000,
            "kl_rise_later": None if step == 0 else -0.0125,
        }
        for step in range(0, STEPS, 10)
    ]


def subject(key, place, seed):
    scores = {
        name: {"title": title, "score": (score := 0.3 + 0.05 * place + 0.02 * seed + 0.01 * column)}
        | {"low": score - 0.04, "high": score + 0.05, "n": 300}
        for column, (name, title) in enumerate(TITLES.items())
    }
    return {
        "label": SUBJECTS[key],
        "parameters": None if key == "genrecal-int8" else 1_040_000,
        "scores": scores,
        "mean": sum(score["score"] for score in scores.values()) / len(scores),
        "weights_bytes": 1_234_567,
        "tokens_per_s": 321.0,
        "first_token_s": 0.0457,
        "peak_memory_bytes": 654_000_000,
    }


def made_up(seed):
    """What gather_results gives, with figures that are easy to find again."""
    answers = {key: f"{key} says three" for key in SUBJECTS} | {"teacher": "four"}
    sample = {"image": png(seed), "question": "How many?", "reference": "four", "answers": answers}
    gain = {"difference": 0.031 + 0.01 * seed, "low": 0.011, "high": 0.052}
    return {
        "seed": seed,
        "versions": {"python": "3.11.4", "torch": f"2.13.{seed}"},
        "seconds": {"data": 12.34, "bench: teacher": 60.0 + seed},
        "labels": {"given": 0.713, "teacher": 0.874},
        "subjects": {key: subject(key, place, seed) for place, key in enumerate(SUBJECTS)},
        "gain": {
            "baseline": gain,
            "sft": gain,
            "sft-teacher": {"difference": -0.01, "low": -0.03, "high": 0.01},
        },
        "agreement": {name: {"share": 0.97, "n": 300} for name in TITLES}
        | {"long answers": {"share": 0.93, "n": 123}},
        "curves": {
            "genrecal": curve("recalibrate", ("ar", "kl", "reg_ar", "reg_kl", "sft"))
            + curve("distill", ("ar", "kl", "sft"))
            + curve("finetune", ("sft",)),
            "sft": curve("adapt", ("sft",)) + curve("finetune", ("sft",)),
            "sft-teacher": curve("adapt", ("sft",)) + curve("finetune", ("sft",)),
        },
        "reading": reading("recalibrate") + reading("distill"),
        "samples": [sample | {"image": png(number)} for number in range(10)],
    }


def seeds_on_disk(folder, results):
    folders = []
    for result in results:
        seed = folder / f"seed-{result['seed']}"
        seed.mkdir(parents=True)
        (seed / "results.json").write_text(json.dumps(result))
        folders.append(seed)
    return folders


class Page(HTMLParser):
    """What a browser would see: tags with attributes, texts, and the elements that stay open."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    page = write_report(seeds_on_disk(folder, [made_up(0), made_up(1)]), folder)
    assert page == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(written):
    return (written / "report.html").read_text()


def test_page_stands_alone(html):
    assert len(html.encode()) < 5_000_000
    page = Page(html)
    assert page.open == []
    loading = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    for tag, attributes in page.tags:
        assert tag not in ("link", "script", "iframe", "object", "embed", "base"), tag
        for name in loading:
            if name in attributes:
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, attributes[name])
    assert not re.search(r"https?:|@import|url\((?!#)", html)


def test_names_on_the_page_are_unique_and_every_reference_is_met(html):
    page = Page(html)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert names and len(names) == len(set(names))
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', html))
    assert used and used <= set(names)


def test_table_shows_means_and_spreads_over_the_seeds(html):
    text = Page(html).text
    # the teacher: MMB 30 and 32, the mean of its three columns 31 and 33
    assert "teacher 31.0 ± 1.4 32.0 ± 1.4 33.0 ± 1.4 32.0 ± 1.4 1.04 M 1.23 MB 321 46 ms 654 MB" in text
    assert "GenRecal, int8 build 56.0 ± 1.4 57.0 ± 1.4 58.0 ± 1.4 57.0 ± 1.4 - 1.23 MB" in text
    # the seeds by themselves, with intervals
    assert "teacher 30.0 [26.0, 35.0]" in text and "teacher 32.0 [28.0, 37.0]" in text
    for title in TITLES.values():
        assert title in text
    assert f"'{OfflineJudge.title}' is not MM-Vet's score" in text


def test_one_seed_shows_its_intervals(tmp_path):
    write_report(seeds_on_disk(tmp_path, [made_up(0)]), tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "teacher 30.0 [26.0, 35.0] 31.0 [27.0, 36.0]" in text
    assert "±" not in text and "Each seed by itself" not in text


def test_everything_of_the_results_is_on_the_page(html, written):
    text = Page(html).text
    for line in summary_lines([made_up(0), made_up(1)]):
        assert line in text
    for note in ROWS.values():
        assert note in text
    assert "MMB 97.0% 600" in text and "long answers 93.0% 246" in text
    assert "bench: teacher 60.0 61.0" in text and "all steps 72.3 73.3" in text
    assert "torch 2.13.0, 2.13.1" in text and "python 3.11.4" in text
    # seven stages with their losses, and two panels for each of the two stages that read
    assert html.count("<svg") == html.count("</svg>") == 7 + 4
    markdown = (written / "report.md").read_text()
    assert "| teacher | 31.0 ± 1.4 | 32.0 ± 1.4 |" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(SUBJECTS) and len({row.count("|") for row in rows}) == 1
    assert "GenRecal beats SFT: +3.6 points on average" in markdown


def test_verdicts_follow_the_figures():
    results = made_up(0)
    lines = summary_lines([results])
    assert lines[0] == "GenRecal beats SFT: +3.1 [+1.1, +5.2] points, paired over all questions"
    assert lines[1].startswith("GenRecal does not beat SFT on the teacher's answers: -1.0 [-3.0, +1.0]")
    assert lines[1].endswith("the interval holds zero, so these questions cannot tell")
    assert "End of recalibrate: gradient at z_q 0.69 by distillation, 0.25 by SFT" in lines[2]
    assert "+0.490 nats at the first answer token, -0.0125 at later ones" in lines[2]
    level = made_up(0)
    level["gain"]["sft"] = {"difference": 0.01, "low": -0.01, "high": 0.03}
    assert summary_lines([level])[0].startswith("GenRecal does not beat SFT: +1.0 [-1.0, +3.0]")
    worse = made_up(1)
    worse["gain"]["sft"] = {"difference": -0.08, "low": -0.1, "high": -0.05}
    line = summary_lines([results, worse])[0]
    assert line.startswith("GenRecal does not beat SFT: -2.5 points on average")
    assert line.endswith("not every seed's interval lies on the same side of zero")


def test_a_figure_that_was_not_measured_is_not_made_up():
    results = made_up(0)
    for row in results["reading"]:
        row["kl_rise_later"] = None
    assert "nan at later ones" in summary_lines([results])[2]
    results["reading"] = []
    assert summary_lines([results])[2].endswith("End of recalibrate: not measured")
    assert str(score_cell([{"score": None, "low": None, "high": None}])) == "incomplete"
    assert str(score_cell([{"score": 0.5, "low": None, "high": None}])) == "50.0"


def test_only_an_answer_that_equals_the_reference_is_marked(html):
    marked = re.findall(r'<dd class="same">(.*?)</dd>', html)
    assert marked == ["✓ four"] * 10
    assert html.count("<dd>genrecal-int8 says three</dd>") == 10
    assert html.count("<img ") == 10 and "image-rendering: pixelated" in html


def test_text_of_others_stays_text(tmp_path, html):
    results = made_up(0)
    for row in results["subjects"].values():
        row["label"] += HOSTILE
        row["scores"]["mmb"]["title"] = HOSTILE
    sample = results["samples"][0]
    sample |= {"image": f'"{HOSTILE}', "question": HOSTILE, "reference": HOSTILE}
    sample["answers"] = dict.fromkeys(SUBJECTS, HOSTILE)
    results["versions"][HOSTILE] = HOSTILE
    results["seconds"][HOSTILE] = 1.0
    results["agreement"][HOSTILE] = {"share": 1.0, "n": 1}
    write_report(seeds_on_disk(tmp_path, [results]), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in Page(html).tags}
    assert sum(tag == "img" for tag, _ in page.tags) == 10
    assert HOSTILE in page.text
    markdown = (tmp_path / "report.md").read_text()
    assert not re.search(r"(?<!\\)<", markdown)
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_console_prints_the_table_and_the_lines(tmp_path, capsys):
    folders = seeds_on_disk(tmp_path, [made_up(0), made_up(1)])
    print_summary(folders)
    printed = capsys.readouterr().out
    assert "31.0 ± 1.4" in printed and "654 MB" in printed
    one_line = " ".join(printed.split())
    for line in summary_lines([made_up(0), made_up(1)]):
        assert line in one_line
    print_summary(folders[:1])
    assert "30.0 [26.0, 35.0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text("{"), "is not valid JSON"),
        (lambda path: path.write_text('{"seed": 1}'), "it lacks 'versions'"),
        (lambda path: path.write_text(json.dumps(made_up(1) | {"subjects": {}})), "has other rows"),
    ],
)
def test_unusable_results_are_named_and_nothing_is_written(tmp_path, damage, message):
    folders = seeds_on_disk(tmp_path, [made_up(0), made_up(1)])
    damage(folders[1] / "results.json")
    with pytest.raises(GenrecalError, match=message) as caught:
        write_report(folders, tmp_path)
    assert str(folders[1] / "results.json") in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_curves_stay_small_and_take_the_ink_of_the_page():
    long = [(step, 1 / (step + 1)) for step in range(50_000)]
    svg = panel("long", [Line(name="<ar> & $kl$", color="#123456", seeds=(long,))], log=True)
    assert len(svg) < 40_000
    assert "currentColor" in svg and "&lt;ar&gt; &amp; $kl$" in svg
    # The line, and its short sample in the legend.
    path, _ = sorted(re.findall(r'd="([^"]*)"[^>]*stroke: #123456; stroke-width: 1.6', svg), key=len)[::-1]
    assert POINTS / 2 < path.count("\n") <= POINTS
    one = panel("one", [Line(name="a", color="#123456", seeds=([(0, 0.0)],))], log=True)
    assert "#123456" in one
    assert "<svg" in panel("none", [Line(name="a", color="#123456", seeds=([],))], log=True)


def test_a_browser_renders_the_page_whole(written, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("NO BROWSER ON THIS MACHINE: the report was not rendered")
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,1200", f"--screenshot={shot}"),
            (written / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(shot) as image:
        assert image.size == (500, 1200)
        assert len(image.convert("RGB").getcolors(500 * 1200)) > 20
