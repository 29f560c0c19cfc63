import ast
import base64
import csv
import io
import itertools
import json
import sys
from collections import defaultdict

import pyarrow.parquet
import pytest
from PIL import Image

from genrecal.core.types import DOMAINS
from genrecal.data.check import check_overlap, pixel_hash
from genrecal.data.llava import read_llava
from genrecal.demo.datasets import corpus, drawings, write_test_sets, write_training_set

QUESTIONS = 60


@pytest.fixture(scope="module")
def tests_sets(tmp_path_factory):
    return write_test_sets(tmp_path_factory.mktemp("sets"), seed=7, questions=QUESTIONS)


def mmb_rows(path):
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def mmmu_rows(folder):
    return [
        row
        for file in sorted(folder.rglob("*.parquet"))
        for row in pyarrow.parquet.read_table(file).to_pylist()
    ]


def images_of(sets):
    """Every test image with its name, read back from the files."""
    for row in mmb_rows(sets.mmb):
        if len(row["image"]) > 64:
            yield f"mmb {row['index']}", Image.open(io.BytesIO(base64.b64decode(row["image"], validate=True)))
    for path in sorted((sets.mmvet / "images").iterdir()):
        yield f"mmvet {path.name}", Image.open(path)
    for row in mmmu_rows(sets.mmmu):
        yield row["id"], Image.open(io.BytesIO(row["image_1"]["bytes"]))


def test_training_set_is_llava_that_our_reader_reads(tmp_path):
    path = write_training_set(tmp_path / "set", seed=3, images=80, split="pretrain")
    samples = read_llava(path)
    assert 80 * 2 <= len(samples) <= 80 * 3
    assert {sample.domain for sample in samples} == set(DOMAINS)
    assert len({sample.id for sample in samples}) == len(samples)
    assert {image for sample in samples for image in sample.images} == set(
        (tmp_path / "set/images").iterdir()
    )
    sizes = {Image.open(sample.images[0]).size for sample in samples}
    assert sizes == {(72, 72), (144, 72)}


def test_equal_seeds_give_equal_sets_and_a_larger_set_starts_with_the_smaller(tmp_path):
    small = write_training_set(tmp_path / "small", seed=3, images=10, split="distill")
    large = write_training_set(tmp_path / "large", seed=3, images=20, split="distill")
    other = write_training_set(tmp_path / "other", seed=4, images=10, split="distill")
    small_rows, large_rows = json.loads(small.read_text()), json.loads(large.read_text())
    assert large_rows[: len(small_rows)] == small_rows
    for image in (tmp_path / "small/images").iterdir():
        assert image.read_bytes() == (tmp_path / "large/images" / image.name).read_bytes()
    assert json.loads(other.read_text()) != small_rows


def test_wrong_answers_change_answers_alone(tmp_path):
    clean = json.loads(write_training_set(tmp_path / "a", seed=3, images=150, split="distill").read_text())
    noisy_path = write_training_set(tmp_path / "b", seed=3, images=150, split="distill", wrong_answers=0.3)
    noisy = json.loads(noisy_path.read_text())
    assert len(clean) == len(noisy)
    wrong = 0
    for right_row, row in zip(clean, noisy, strict=True):
        assert row["conversations"][0] == right_row["conversations"][0]
        differs = row["conversations"][1] != right_row["conversations"][1]
        assert differs == row.get("mislabelled", False)
        wrong += differs
    assert 0.2 < wrong / len(noisy) < 0.4


def test_no_test_image_is_a_training_image(tmp_path, tests_sets):
    paths = [
        *(
            write_training_set(tmp_path / "p", seed=7, images=100, split="pretrain").parent / "images"
        ).iterdir(),
        *(
            write_training_set(tmp_path / "d", seed=7, images=100, split="distill").parent / "images"
        ).iterdir(),
    ]
    training = [(str(path), Image.open(path)) for path in paths]
    report = check_overlap(training, images_of(tests_sets))
    assert (report.training_images, report.testing_images) == (200, 3 * QUESTIONS)
    assert report.collisions == ()
    # Nor is one image twice anywhere: a seed shared by two sets would show here.
    everything = [pixel_hash(image) for _, image in itertools.chain(training, images_of(tests_sets))]
    assert len(set(everything)) == len(everything)


def test_mmbench_holds_every_rotation(tests_sets):
    groups = defaultdict(list)
    for row in mmb_rows(tests_sets.mmb):
        groups[int(row["index"]) % 10**6].append(row)
    assert len(groups) == QUESTIONS
    assert {len(rows) for rows in groups.values()} == {2, 3, 4}
    for index, rows in groups.items():
        main = rows[0]
        assert int(main["index"]) == index and len(main["image"]) > 64
        listed = [main[letter] for letter in "ABCD" if main[letter]]
        assert [int(row["index"]) for row in rows] == [index + turn * 10**6 for turn in range(len(listed))]
        for turn, row in enumerate(rows):
            assert [row[letter] for letter in "ABCD" if row[letter]] == listed[turn:] + listed[:turn]
            assert row[row["answer"]] == main[main["answer"]]
            assert turn == 0 or row["image"] == str(index)
            assert row["split"] == "dev" and row["category"] and row["l2-category"]


def test_mmvet_has_images_capabilities_and_long_answers(tests_sets):
    rows = json.loads((tests_sets.mmvet / "mm-vet.json").read_text())
    assert len(rows) == QUESTIONS
    for name, row in rows.items():
        assert set(row) == {"imagename", "question", "answer", "capability"}
        assert (
            row["imagename"] == f"{name}.png" and (tests_sets.mmvet / "images" / row["imagename"]).is_file()
        )
        assert set(row["capability"]) <= {"rec", "ocr", "know", "gen", "spat", "math"} and row["capability"]
        assert row["answer"] and "<AND><AND>" not in row["answer"]
    assert sum("<AND>" in row["answer"] for row in rows.values()) > QUESTIONS / 4


def test_mmmu_has_choices_and_open_questions_of_several_subjects(tests_sets):
    rows = mmmu_rows(tests_sets.mmmu)
    assert len(rows) == QUESTIONS == len({row["id"] for row in rows})
    assert len({row["id"].split("_")[1] for row in rows}) >= 4
    kinds = {"multiple-choice": 0, "open": 0}
    for row in rows:
        kinds[row["question_type"]] += 1
        assert row["id"].startswith("validation_") and row["question"].count("<image 1>") == 1
        assert all(row[f"image_{number}"] is None for number in range(2, 8))
        options = ast.literal_eval(row["options"])
        if row["question_type"] == "open":
            assert options == [] and row["answer"]
        else:
            assert row["answer"] in "ABCD"[: len(options)]
    assert min(kinds.values()) >= QUESTIONS // 4


def test_corpus_holds_the_words_of_every_split(tests_sets):
    words = set(" ".join(corpus(0, 3000)).replace("\n", " ").split())
    for row in mmmu_rows(tests_sets.mmmu):
        assert set(row["question"].removeprefix("<image 1>\n").split()) <= words


def test_drawings_repeat_by_seed_and_differ_by_split():
    def first(seed, split):
        return pixel_hash(next(drawings(seed, split)).image)

    assert first(1, "test") == first(1, "test")
    assert len({first(1, "test"), first(2, "test"), first(1, "pretrain"), first(1, "distill")}) == 4
