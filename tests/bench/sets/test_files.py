"""Every other benchmark from files as they are published: rows, prompts, scores by hand, bad files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from bench.scoring import score
from bench.task import LMMS, OFFICIAL, VLMEVALKIT, Choices
from bench.tasks import TASKS
from genrecal.core.errors import BenchError, DataError, GenrecalError
from tests.bench.tiny_sets import mmb_row, png, write_mmb

IMAGE = {"bytes": png("red"), "path": None}
MMSTAR_TEXT = "Which colour?\nOptions: A: red, B: green, C: blue, or grey, D: black"
COLOURS = ["red", "green", "blue", "black"]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(path)
    return path


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 32), "red").save(path)


def mmstar(folder: Path) -> Path:
    row = {"question": MMSTAR_TEXT, "image": IMAGE, "answer": "A", "category": "math"}
    rows = [{**row, "index": n, "l2_category": f"skill {min(n, 1)}"} for n in range(3)]
    return parquet(folder / "mmstar.parquet", rows)


def ai2d(folder: Path) -> Path:
    row = {"question": "Which colour?", "options": COLOURS[:3], "answer": "0", "image": IMAGE}
    return parquet(folder / "test-0.parquet", [row, row, row])


def chartqa(folder: Path) -> Path:
    for name in ("1.png", "2.png"):
        jpeg(folder / "png" / name)
    row = {"imgname": "1.png", "query": "How many?", "label": "10"}
    (folder / "test_human.json").write_text(json.dumps([row]))
    (folder / "test_augmented.json").write_text(json.dumps([{**row, "imgname": "2.png"}] * 2))
    return folder


def mathvista(folder: Path) -> Path:
    row = {
        "query": "Hint: ...\nQuestion: ?",
        "decoded_image": IMAGE,
        "choices": ["red", "green"],
        "precision": 1.0,
        "question_type": "multi_choice",
        "answer_type": "text",
        "answer": "red",
        "metadata": {"task": "figure", "skills": ["a", "b"], "split": "testmini"},
    }
    free = {"question_type": "free_form", "choices": None}
    rows = [
        {**row, "pid": "1"},
        {**row, **free, "pid": "2", "answer_type": "integer", "answer": "3"},
        {**row, **free, "pid": "3", "answer_type": "float", "answer": "2.5"},
    ]
    return parquet(folder / "testmini-0.parquet", rows)


def blink(folder: Path) -> Path:
    row = {"question": "?", "image_1": IMAGE, "image_2": IMAGE, "choices": COLOURS[:2], "answer": "(A)"}
    for task, count in (("Counting", 1), ("Jigsaw", 2)):
        rows = [
            {**row, "idx": f"val_{task}_{n}", "sub_task": task, "prompt": "Say (A) or (B)."}
            for n in range(count)
        ]
        parquet(folder / task / "val-0.parquet", rows)
    return folder


def seed_bench_2_plus(folder: Path) -> Path:
    jpeg(folder / "images" / "chart" / "1.png")
    row = {f"choice_{letter}": colour for letter, colour in zip("abcd", COLOURS, strict=True)}
    row |= {
        "question": "Which colour?",
        "answer": "A",
        "data_id": "chart/1.png",
        "question_image_type": "chart",
    }
    content = {"questions": [{**row, "question_id": str(n)} for n in range(3)]}
    (folder / "seed.json").write_text(json.dumps(content))
    return folder / "seed.json"


def realworldqa(folder: Path) -> Path:
    choice = "Which?\n\nA. red\nB. green\nPlease answer directly with only the letter."
    rows = [{"question": choice, "answer": "A", "image": IMAGE}] * 2
    return parquet(folder / "test-0.parquet", [*rows, {"question": "Count.", "answer": "2", "image": IMAGE}])


def vqa(folder: Path) -> Path:
    jpeg(folder / "val2014" / "COCO_val2014_000000000007.jpg")
    answers = [{"answer": "two dogs", "answer_id": n} for n in range(9)] + [{"answer": "cat", "answer_id": 9}]
    questions = [{"question_id": n, "image_id": 7, "question": "What?"} for n in range(3)]
    found = [
        {"question_id": n, "answers": answers, "answer_type": "other", "question_type": "what"}
        for n in range(3)
    ]
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": found}))
    return folder


def textvqa(folder: Path) -> Path:
    jpeg(folder / "train_images" / "x.jpg")
    row = {"question": "What?", "image_id": "x", "answers": ["two dogs"] * 9 + ["cat"], "set_name": "val"}
    content = {"data": [{**row, "question_id": n} for n in range(3)]}
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps(content))
    return folder


def refcoco_plus(folder: Path) -> Path:
    jpeg(folder / "train2014" / "x.jpg")
    said = [{"sent": "the red one"}]
    refs = [
        {"ref_id": n, "ann_id": 5, "image_id": 7, "split": split, "sentences": said}
        for n, split in enumerate(("val", "val", "testA", "train"))
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    instances = {
        "annotations": [{"id": 5, "bbox": [0, 0, 20, 16]}],
        "images": [{"id": 7, "file_name": "x.jpg", "width": 40, "height": 32}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder


def mmmu_pro(folder: Path) -> Path:
    row = {"options": str(COLOURS), "answer": "A", "subject": "Art"}
    asked = {"question": "<image 1> Which?", "image_1": IMAGE}
    names = [f"test_Art_{n}" for n in range(2)]
    ten = {"options": str([*COLOURS, "pink"])}
    parquet(
        folder / "standard (10 options)" / "test-0.parquet", [{**row, **asked, **ten, "id": n} for n in names]
    )
    parquet(folder / "vision" / "test-0.parquet", [{**row, "image": IMAGE, "id": names[0]}])
    return folder


def mmvet_v2(folder: Path) -> Path:
    jpeg(folder / "images" / "v2_1.jpg")
    row = {"question": "See <IMG>v2_1.jpg<IMG> and say.", "answer": "red", "capability": ["rec", "seq"]}
    (folder / "mm-vet-v2.json").write_text(json.dumps({f"v2_{n}": row for n in range(3)}))
    return folder


def mmb_cn(folder: Path) -> Path:
    rows = [mmb_row(n, ["red", "green"], "A", question="什么颜色?") for n in range(3)]
    return write_mmb(folder / "cn.tsv", rows)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "mmstar": mmstar,
    "ai2d": ai2d,
    "chartqa": chartqa,
    "mathvista": mathvista,
    "blink": blink,
    "seed_bench_2_plus": seed_bench_2_plus,
    "realworldqa": realworldqa,
    "vqav2": vqa,
    "ok_vqa": vqa,
    "textvqa": textvqa,
    "refcoco_plus": refcoco_plus,
    "mmmu_pro": mmmu_pro,
    "mmvet_v2": mmvet_v2,
    "mmb_cn": mmb_cn,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_have_what_a_score_needs(name, tmp_path):
    task = TASKS[name]
    rows = task.load(WRITERS[name](tmp_path))
    assert len({row.id for row in rows}) == len(rows) >= 3
    for row in rows:
        query = task.prompt(row)
        assert query.id == row.id and row.gold and row.split
        assert any(isinstance(part, Image.Image) for part in query.parts)
        assert all(part.strip() for part in query.parts if isinstance(part, str))


SPLITS = {"mmmu_pro": "standard-10+vision", "refcoco_plus": "testA+val", "mmb_cn": "dev", "mmstar": "val"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_score_bears_its_labels_and_every_rule_gives_one(name, tmp_path):
    task = TASKS[name]
    rows = task.load(WRITERS[name](tmp_path))
    for compat in task.compats:
        if (name, compat) == ("realworldqa", VLMEVALKIT):
            continue  # needs the kit's TSV, as the next test shows
        one = score(task, rows, {row.id: "x" for row in rows}, Choices(compat=compat), generation="model")
        assert (one.benchmark, one.version, one.compat) == (name, task.version, compat)
        assert one.split == SPLITS.get(name, one.split) and one.score == 0
    if VLMEVALKIT not in task.compats:
        with pytest.raises(BenchError, match="no rule 'vlmevalkit'"):
            score(task, rows, {}, Choices(compat=VLMEVALKIT), generation="model")


# name, rule, replies in the rows' order, the score by hand
BY_HAND = [
    ("mmstar", OFFICIAL, ["A dog", "the answer is a", "red"], 2 / 3),
    ("mmstar", VLMEVALKIT, ["A", "no idea", "It is blue, or grey"], 1 / 3),
    ("mmstar", LMMS, ["**A**", "B", "A"], 3 / 4),  # the mean of two sub-skills
    ("ai2d", OFFICIAL, ["A", "the red thing", "a"], 2 / 3),
    ("ai2d", LMMS, ["A. red", "The answer is A", " a!"], 1 / 3),
    ("chartqa", OFFICIAL, ["10.5", "10 units", "10.51"], 1 / 3),
    ("mathvista", OFFICIAL, ["red", "3", "2.54"], 1.0),
    ("mathvista", OFFICIAL, ["", "3.0", "2.6"], 1 / 3),  # nothing is nearest to the shortest choice
    ("mathvista", VLMEVALKIT, ["A", "3", "2.50"], 1.0),
    ("mathvista", LMMS, ["red", "3", "2.5"], 2 / 3),
    ("blink", OFFICIAL, ["(A)", "(A)", "(B)"], 3 / 4),  # the mean of two tasks
    ("blink", LMMS, ["(A)", "(A)", "All"], 1.0),
    ("seed_bench_2_plus", OFFICIAL, ["The answer is A", "A", "green"], 2 / 3),
    ("seed_bench_2_plus", LMMS, ["The answer is A", "apple", "A"], 2 / 3),
    ("realworldqa", OFFICIAL, ["A. red", "B", "2."], 2 / 3),
    ("vqav2", OFFICIAL, ["2 dogs.", "a cat", "dog"], (1 + 0.3) / 3),
    ("ok_vqa", OFFICIAL, ["Two dogs", "two dogs!", "cat"], (2 + 0.3) / 3),
    ("textvqa", OFFICIAL, ["the two dogs", "two, dogs", "?"], 2 / 3),
    ("refcoco_plus", OFFICIAL, ["[0, 0, 0.5, 0.5]", "0, 0, 0.5, 0.5", "[0,0,0.5,0.25]"], 3 / 4),
    ("refcoco_plus", VLMEVALKIT, ["[0 0 500 500]", "0, 0, 0.5, 0.5", "[0,0,0.5,0.2]"], 1 / 2),
    ("mmmu_pro", OFFICIAL, ["Answer: A", "B", "A."], 3 / 4),
    ("mmmu_pro", LMMS, ["(A)", "A.", "(A)"], 1 / 2),
]


@pytest.mark.parametrize(("name", "compat", "replies", "expected"), BY_HAND)
def test_scores_by_hand(name, compat, replies, expected, tmp_path):
    rows = TASKS[name].load(WRITERS[name](tmp_path))
    given = {row.id: reply for row, reply in zip(rows, replies, strict=True)}
    one = score(TASKS[name], rows, given, Choices(compat=compat), generation="model")
    assert one.score == pytest.approx(expected)


def test_what_nobody_can_read_is_counted_apart(tmp_path):
    for name, key in (("ai2d", "unparsed_rows"), ("mathvista", "unparsed_rows"), ("mmmu_pro", "random_rows")):
        rows = TASKS[name].load(WRITERS[name](tmp_path / name))
        one = score(TASKS[name], rows, {row.id: "who knows" for row in rows}, Choices(), generation="model")
        assert one.details[key] == len(one.details[key.replace("rows", "row_ids")]) == 3 and one.score == 0


def test_the_kits_realworldqa_needs_its_tsv(tmp_path):
    task = TASKS["realworldqa"]
    rows = task.load(realworldqa(tmp_path))
    with pytest.raises(BenchError, match="1 questions have no options"):
        score(task, rows, {row.id: "A" for row in rows}, Choices(compat=VLMEVALKIT), generation="model")
    rows = task.load(write_mmb(tmp_path / "r.tsv", [mmb_row(n, ["red", "green"], "A") for n in range(2)]))
    assert (
        score(task, rows, {"0": "A", "1": "red"}, Choices(compat=VLMEVALKIT), generation="model").score == 1
    )


@pytest.mark.parametrize("name", ["mmstar", "ai2d", "blink", "seed_bench_2_plus"])
def test_the_kits_tsv(name, tmp_path):
    rows = [mmb_row(n, ["red", "green"], "A", l2_category="s") for n in range(2)]
    task = TASKS[name]
    loaded = task.load(write_mmb(tmp_path / "kit.tsv", rows))
    assert "A. red" in task.prompt(loaded[0]).parts[-1].replace("(A)", "A.")
    one = score(task, loaded, {"0": "A", "1": "B"}, Choices(), generation="model")
    assert one.score == 0.5


def test_a_file_in_the_other_language(tmp_path):
    with pytest.raises(DataError, match=r"\d+ of its \d+ questions are in Chinese"):
        TASKS["mmb"].load(mmb_cn(tmp_path))


def test_a_pickle_that_names_code(tmp_path):
    refcoco_plus(tmp_path)

    class Run:
        def __reduce__(self):
            return (print, ("hello",))

    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Run()]))
    with pytest.raises(DataError, match="print"):
        TASKS["refcoco_plus"].load(tmp_path)


def spoil(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


SPOILED = [
    ("chartqa", "test_human.json", lambda c: c[0].pop("label"), "has no texts"),
    ("chartqa", "test_human.json", lambda c: c[0].update(imgname="no.png"), "no such image"),
    (
        "vqav2",
        "v2_mscoco_val2014_annotations.json",
        lambda c: c["annotations"].pop(),
        "no annotation of question 2",
    ),
    (
        "vqav2",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        lambda c: c["questions"].append(c["questions"][0]),
        "1 ids stand there twice",
    ),
    ("textvqa", "TextVQA_0.5.1_val.json", lambda c: c["data"][0].pop("answers"), "has no answers"),
    (
        "textvqa",
        "TextVQA_0.5.1_val.json",
        lambda c: c["data"][1].update(question_id=0),
        "1 ids stand there twice",
    ),
    ("seed_bench_2_plus", "seed.json", lambda c: c["questions"][0].update(answer="E"), "none of its options"),
    ("refcoco_plus", "instances.json", lambda c: c["annotations"].clear(), "is not in instances.json"),
    ("mmvet_v2", "mm-vet-v2.json", lambda c: c["v2_0"].pop("capability"), "no list of names"),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), SPOILED)
def test_bad_files_get_one_clear_line(name, file, change, message, tmp_path):
    path = WRITERS[name](tmp_path)
    spoil(tmp_path / file, change)
    with pytest.raises((DataError, BenchError), match=message) as caught:
        TASKS[name].load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("vqav2", "ok_vqa")])
def test_no_file_an_empty_folder_and_nonsense(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    (tmp_path / "bad.tsv").write_text("a\tb\n1\t2\n")
    for path in ("no", "empty", "bad.json", "bad.parquet", "bad.tsv"):
        with pytest.raises(GenrecalError):
            TASKS[name].load(tmp_path / path)
