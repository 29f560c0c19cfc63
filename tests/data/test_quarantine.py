"""What a run has left out: known to every rank, written down once, within the limit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genrecal.core.errors import DataError
from genrecal.data.batch import PairedBatch, collate
from genrecal.data.mixture import SourceConfig, read_mixture, without_domains
from genrecal.data.order import Part, read_by, step_indices
from genrecal.data.pair import PairReader
from genrecal.data.quarantine import LONGEST, Quarantine, Quarantined, Totals, quarantined, totals
from genrecal.models.processors import load_processor
from tests.tiny import TinyData, TinyPair


def one(place: int, name: str = "") -> Quarantined:
    error = DataError("cannot be decoded", where=f"{place}.png")
    return quarantined(place, name or f"id-{place}", "data.json", error)


def lines(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]


def test_every_rank_knows_all_and_the_first_reader_writes(tmp_path: Path) -> None:
    ranks = [Quarantine(tmp_path, skips=True, limit=9, rank=rank) for rank in range(2)]
    # Both ranks met sample 3 in the same step: one line.
    by_rank = [[one(3), one(3)], [one(5), one(3)]]
    assert [len(rank.fresh(found)) for rank, found in zip(ranks, by_rank, strict=True)] == [1, 2]
    for rank in ranks:
        rank.add([rank.fresh(found) for found in by_rank], stage="distill", step=7)
        assert rank.count == 2 and rank.fresh([one(5)]) == []
    assert [(row["place"], row["rank"], row["step"], row["stage"]) for row in lines(tmp_path)] == [
        (3, 0, 7, "distill"),
        (5, 1, 7, "distill"),
    ]
    assert {row["what"] for row in lines(tmp_path)} == {"cannot be decoded"}


def test_a_killed_run_counts_nothing_twice(tmp_path: Path) -> None:
    """Also where it goes on with another number of ranks, behind a line that was cut off."""
    before = Quarantine(tmp_path, skips=True, limit=9, rank=3)
    before.add([[], [], [], [one(1), one(2)]], stage="a", step=0)
    with (tmp_path / "rank-3.jsonl").open("a") as stream:
        stream.write('{"place": 8, "id": "cut')
    after = Quarantine(tmp_path, skips=True, limit=9, rows_left_out=4, rank=3)
    assert after.count == 6 and after.holds(1, "id-1") and not after.holds(8, "cut")
    after.add([[], [], [], after.fresh([one(1), one(4)])], stage="a", step=0)
    again = Quarantine(tmp_path, skips=True, limit=9, rank=0)
    assert sorted(again.known) == [1, 2, 4]


def test_above_the_limit_is_one_line(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, skips=True, limit=4, rows_left_out=2)
    quarantine.add([[one(1), one(2)]], stage="a", step=0)
    quarantine.require_within_limit()
    quarantine.add([[one(3)]], stage="a", step=1)
    with pytest.raises(DataError) as caught:
        quarantine.require_within_limit()
    line = str(caught.value)
    assert "5 samples cannot be used (2 rows when the tables were built, 3 when they were read)" in line
    assert "max_bad is 4" in line and "sample 'id-3' of data.json: 3.png: cannot be decoded" in line
    assert "\n" not in line
    # A run that may leave nothing out reads everything again: it stops at the first one.
    assert Quarantine(tmp_path, skips=False).count == 0


def test_what_is_written_is_bounded(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    found = quarantined(0, long, long, DataError(long, where=long))
    assert max(map(len, (found.id, found.source, found.where, found.what))) == LONGEST
    quarantine = Quarantine(tmp_path, skips=True, limit=1)
    quarantine.add([[found]], stage="a", step=0)
    assert quarantine.holds(0, long) and not quarantine.holds(0, "another sample")
    assert (tmp_path / "rank-0.jsonl").stat().st_size < 5 * LONGEST


def test_places_are_the_same_in_every_choice(tiny_data: TinyData, tmp_path: Path) -> None:
    """A sample that one stage leaves out is known in the next, whichever domains that one reads."""
    mixture = read_mixture([SourceConfig(path=tiny_data.path)] * 2, cache=tmp_path)
    part = without_domains(mixture, ["general_vqa"])
    for index in (0, 5, len(part) - 1, -1):
        assert mixture[part.place(index)] == part[index]
        assert part.place(index) == part.places[index]
    assert mixture.place(len(mixture) - 1) == 2 * tiny_data.samples - 1
    with pytest.raises(IndexError):
        part.place(len(part))


@pytest.mark.parametrize(("steps", "window"), [(5, 0), (5, 2), (1, 0), (13, 3)])
def test_what_was_read_is_what_steps_read(steps: int, window: int) -> None:
    parts = (Part(samples=17, weight=1.5), Part(samples=9), Part(samples=6, weight=0.5))
    read = read_by(parts, seed=4, steps=steps, per_step=8)
    lengths = np.arange(32)
    indices = {
        index
        for step in range(steps)
        for rank in range(2)
        for row in step_indices(
            samples=parts,
            seed=4,
            step=step,
            rank=rank,
            ranks=2,
            micro_batch=2,
            accumulation=2,
            window=window,
            steps=steps,
            lengths=lengths,
        )
        for index in row
    }
    assert set(np.flatnonzero(read)) == indices


def test_totals_hold_every_sample_once(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, skips=True, limit=9, rows_left_out=3)
    quarantine.add([[one(10), one(14), one(99)]], stage="a", step=0)  # 99 is of another stage
    read = np.array([True, True, False, True, True])
    found = totals(quarantine, np.array([10, 11, 12, 13, 14]), read)
    assert found == Totals(kept=2, quarantined=2, rows_left_out=3, not_read=1) and found.total == 8
    assert found.sentence().startswith("2 kept + 5 quarantined + 1 not read = 8 samples")


@pytest.fixture(scope="module")
def reader(tiny_pair: TinyPair, tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> PairReader:
    return PairReader(
        read_mixture([SourceConfig(path=tiny_data.path)], cache=tmp_path_factory.mktemp("tables")),
        student=load_processor(tiny_pair.student),
        teachers=[load_processor(tiny_pair.teacher)],
        max_tokens=512,
    )


def batch_of(reader: PairReader, *indices: int | None) -> PairedBatch:
    """A batch with a row that stands for a sample left out for every None."""
    return collate(
        [reader.absent if index is None else reader[index] for index in indices],
        student_padding=7,
        teacher_paddings=[9],
        student_blank=reader.student_blank,
        teacher_blanks=reader.teacher_blanks,
    )


def test_a_row_left_out_has_no_answer(reader: PairReader) -> None:
    whole, less = batch_of(reader, 0, 4), batch_of(reader, 0, None, 4)
    assert less.ids == whole.ids and len(less.domains) == 3
    for mine, theirs in ((less.student, whole.student), (less.teachers[0], whole.teachers[0])):
        assert mine.answer_tokens == theirs.answer_tokens
        assert mine.answer_mask_BA[1].sum() == 0 and int(mine.question_lengths_B[1]) == 1
        for row, same in ((0, 0), (2, 1)):
            assert torch.equal(mine.input_ids_BS[row], theirs.input_ids_BS[same])
        assert torch.equal(mine.vision["pixel_values"], theirs.vision["pixel_values"])


def test_a_batch_of_none_has_an_image_and_no_answer(reader: PairReader) -> None:
    batch = batch_of(reader, None, None)
    assert batch.ids == () and len(batch.domains) == 2
    for side in (batch.student, *batch.teachers):
        assert side.answer_tokens == 0 and side.answer_mask_BA.shape == (2, 1)
        assert len(side.vision["pixel_values"]) > 0
        # The image lies behind the end, where no mask shows it.
        assert side.attention_mask_BS.sum(1).tolist() == [1, 1]
