"""What runs are called, which of them are seeds of each other, and where their scores are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genrecal.core.errors import BenchError, ConfigError
from genrecal.figures.naming import first_seeds, names, side_by_side
from genrecal.figures.runs import Missing, metrics, open_runs, read_points
from tests.figures.sample_runs import write_bench, write_run

SCORES = {"mmb": 0.6, "mmmu": 0.4}


def plain(folder: Path, **settings: object) -> Path:
    return write_run(folder, metrics=False, features=False, points=False, **settings)  # type: ignore[arg-type]


def test_names_hold_what_differs(tmp_path: Path) -> None:
    runs = open_runs(
        [
            plain(tmp_path / "a"),
            plain(tmp_path / "b", teacher="Qwen2-VL-72B"),
            plain(tmp_path / "c", teacher="Qwen2-VL-72B", excluded=("knowledge", "chart_document")),
        ]
    )
    assert [run.name() for run in runs] == [
        "InternVL2_5-78B, all data",
        "Qwen2-VL-72B, all data",
        "Qwen2-VL-72B, without knowledge and chart & document",
    ]
    assert list(names(runs[1:]).values()) == ["all data", "without knowledge and chart & document"]
    assert names(runs, without=("data",))[tmp_path / "a"] == "InternVL2_5-78B"


def test_a_method_without_a_teacher_names_none(tmp_path: Path) -> None:
    runs = open_runs([plain(tmp_path / "a"), plain(tmp_path / "b", method="sft")])
    assert [run.name() for run in runs] == ["genrecal", "sft"]
    assert [run.name() for run in open_runs([tmp_path / "b"])] == ["sft"]


def test_several_teachers_are_named_together(tmp_path: Path) -> None:
    several = {"teacher": None, "teachers": [{"path": "m/A"}, {"path": "m/B", "weight": 2.0}]}
    (run,) = open_runs([plain(tmp_path / "a", settings=several)])
    assert run.parts["teacher"] == "A + B"


def test_runs_that_differ_in_their_seed_share_a_name(tmp_path: Path) -> None:
    folders = [
        plain(tmp_path / f"{method}-{seed}", method=method, seed=seed)
        for method in ("genrecal", "sft")
        for seed in (0, 1)
    ]
    runs = open_runs(folders)
    assert [run.name() for run in runs] == ["genrecal", "genrecal", "sft", "sft"]
    assert [run.title for run in runs][:2] == ["genrecal, seed 0", "genrecal, seed 1"]
    assert [run.folder for run in first_seeds(runs)] == [folders[0], folders[2]]
    ordered, columns = side_by_side(runs)
    assert [run.title for run in ordered] == [
        "genrecal, seed 0",
        "sft, seed 0",
        "genrecal, seed 1",
        "sft, seed 1",
    ]
    assert columns == 2
    assert side_by_side(runs[:3])[1] is None


def test_other_models_of_one_name_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    """Every student that genrecal leaves is a folder called `student`."""
    folders = [
        plain(tmp_path / f"run-{run}", student=tmp_path / run / "student", seed=seed)
        for seed, run in enumerate("ab")
    ]
    assert [run.name() for run in open_runs(folders)] == ["a/student", "b/student"]
    teachers = [
        plain(tmp_path / f"of-{run}", teacher=f"{run}/student", student=tmp_path / "s", seed=seed)
        for seed, run in enumerate("ab")
    ]
    assert [run.name() for run in open_runs(teachers)] == ["a/student", "b/student"]


def test_a_model_made_for_each_seed_is_one(tmp_path: Path) -> None:
    """As `genrecal demo` lays them out."""
    folders = [
        plain(
            tmp_path / f"seed-{seed}" / "run",
            student=tmp_path / f"seed-{seed}" / "student",
            seed=seed,
            settings={"data": {"sources": [{"path": str(tmp_path / f"seed-{seed}" / "data.json")}]}},
        )
        for seed in (0, 10)
    ]
    assert [run.title for run in open_runs(folders)] == ["genrecal, seed 0", "genrecal, seed 10"]
    # Seed 1 trained on what was made for seed 10.
    other = plain(tmp_path / "run", student=tmp_path / "seed-10" / "student", seed=1)
    names = [run.parts["student"] for run in open_runs([folders[0], other])]
    assert names == ["seed-*/student", "seed-10/student"]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"path": "much/data.json"}, ["little/data.json", "much/data.json"]),
        ({"path": "much.json"}, ["data.json", "much.json"]),
        ({"path": "little/data.json", "weight": 2.0}, ["data.json", "data.json (weight 2.0)"]),
        ({"path": "little/data.json", "turns": "each"}, ["data.json", "data.json (turns each)"]),
        ({"path": "little/data.json", "domain": "knowledge"}, ["data.json", "data.json (domain knowledge)"]),
        (
            {"path": "little/data.json", "exclude_ids": "x/bad.json"},
            ["data.json", "data.json (exclude_ids bad.json)"],
        ),
    ],
)
def test_other_data_is_no_seed(tmp_path: Path, other: dict[str, object], expected: list[str]) -> None:
    sources = [{"path": "little/data.json", "weight": 1.0}, other]
    runs = open_runs(
        [
            plain(tmp_path / f"run-{seed}", seed=seed, settings={"data": {"sources": [source]}})
            for seed, source in enumerate(sources)
        ]
    )
    assert [run.name() for run in runs] == [f"data.sources={text}" for text in expected]


def test_teachers_of_other_weights_are_no_seeds(tmp_path: Path) -> None:
    def several(weight: float) -> dict[str, object]:
        return {"teacher": None, "teachers": [{"path": "m/A"}, {"path": "m/B", "weight": weight}]}

    runs = open_runs(
        [plain(tmp_path / str(seed), seed=seed, settings=several(1.0 + seed)) for seed in range(2)]
    )
    assert [run.name() for run in runs] == ["teachers=A + B", "teachers=A + B (weight 2.0)"]


def test_another_setting_joins_the_name_and_machines_do_not(tmp_path: Path) -> None:
    def settings(answer_input: str, ranks: int) -> dict[str, object]:
        return {"recalibrator": {"answer_input": answer_input}, "engine": {"ranks": ranks}}

    runs = open_runs(
        [
            plain(tmp_path / "a", settings=settings("features", 1)),
            plain(tmp_path / "b", settings=settings("aligned", 8)),
        ]
    )
    assert [run.name() for run in runs] == [
        "recalibrator.answer_input=features",
        "recalibrator.answer_input=aligned",
    ]


def test_runs_that_differ_in_much_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    settings = [{"lora": {"rank": rank, "alpha": rank}, "relabel": {}, "x": rank} for rank in (4, 8)]
    runs = open_runs([plain(tmp_path / name, settings=one) for name, one in zip("ab", settings, strict=True)])
    assert [run.name() for run in runs] == ["a", "b"]
    # Folders of one name, and of two seeds.
    runs = open_runs(
        [
            plain(tmp_path / name / "run", student=tmp_path / "s", seed=seed, settings=one)
            for seed, (name, one) in enumerate(zip("cd", settings, strict=True))
        ]
    )
    assert [run.name() for run in runs] == ["c/run", "d/run"]


def test_the_same_run_twice_is_told_apart_by_its_folder(tmp_path: Path) -> None:
    runs = open_runs([plain(tmp_path / "a"), plain(tmp_path / "b"), tmp_path / "a"])
    assert [run.name() for run in runs] == ["a", "b"]


def test_scores_before_and_after(tmp_path: Path) -> None:
    run = plain(tmp_path / "run", student=tmp_path / "m" / "tiny", after=SCORES)
    (found,) = open_runs([run])
    assert found.before is None and found.after is not None
    assert found.after.results["mmb"].score.score == 0.6
    # A bench that was put elsewhere.
    elsewhere = write_bench(tmp_path / "elsewhere", SCORES, subject="renamed")
    (found,) = open_runs([run], [elsewhere])
    assert found.before is not None and found.before.name == "renamed"
    # Where `genrecal bench` leaves it.
    write_bench(tmp_path / "m" / "tiny-bench", {"mmb": 0.1}, subject=str(tmp_path / "m" / "tiny"))
    (found,) = open_runs([run])
    assert found.before is not None and found.before.results["mmb"].score.score == 0.1


def test_each_student_gets_its_own_baseline(tmp_path: Path) -> None:
    folders = [plain(tmp_path / name, student=tmp_path / "m" / name) for name in ("small", "smaller")]
    benches = [
        write_bench(tmp_path / f"b-{name}", {"mmb": score}, subject=f"m/{name}")
        for name, score in (("smaller", 0.2), ("small", 0.3))
    ]
    runs = open_runs(folders, benches)
    assert [run.before.results["mmb"].score.score for run in runs if run.before] == [0.3, 0.2]
    # One baseline of another student is nobody's, where there are several students.
    assert [run.before for run in open_runs(folders, [write_bench(tmp_path / "x", SCORES, subject="x")])] == [
        None,
        None,
    ]


def test_baselines_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    students = [tmp_path / name / "student" for name in "ab"]
    folders = [plain(tmp_path / f"run-{place}", student=student) for place, student in enumerate(students)]
    benches = [
        write_bench(tmp_path / f"bench-{score}", {"mmb": score}, subject=str(student))
        for score, student in zip((0.3, 0.2), students, strict=True)
    ]
    for given in (benches, benches[::-1]):
        runs = open_runs(folders, given)
        assert [run.before and run.before.results["mmb"].score.score for run in runs] == [0.3, 0.2]
    # The one's bench is not the other's, whose name is the same.
    assert [run.before is None for run in open_runs(folders, benches[:1])] == [False, True]


def test_baselines_that_may_be_of_several_students_are_refused(tmp_path: Path) -> None:
    students = [tmp_path / name / "student" for name in "ab"]
    folders = [plain(tmp_path / f"run-{place}", student=student) for place, student in enumerate(students)]
    benches = [
        write_bench(tmp_path / f"bench-{place}", SCORES, subject=f"elsewhere-{place}/student")
        for place in range(2)
    ]
    with pytest.raises(ConfigError, match=r"bench-0: and \S*bench-1 are both of a student 'student'"):
        open_runs(folders[:1], benches)
    with pytest.raises(ConfigError, match=r"the runs have several of that name\. Bench \S*/a/student and"):
        open_runs(folders, benches[:1])


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run: it has no config\.yaml"):
        open_runs([tmp_path])
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        open_runs([tmp_path])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": "genrecal"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="is not the config of a run"):
        open_runs([tmp_path])
    run = plain(tmp_path / "run", after=SCORES)
    (run / "student-bench" / "bench.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BenchError, match="is no bench report"):
        open_runs([run])


def test_lines_that_are_being_written_are_left_out(tmp_path: Path) -> None:
    (run,) = open_runs([write_run(tmp_path / "run", points=False)])
    count = len(metrics(run))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "finet')
    assert len(metrics(run)) == count
    with pytest.raises(Missing, match=r"has no points\.json.*evaluate"):
        read_points(run)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(Missing, match=r"has no metrics\.jsonl"):
        metrics(run)
