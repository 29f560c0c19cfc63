"""OK-VQA: short answers that need outside knowledge, against ten annotators."""

from __future__ import annotations

from bench.rules import vqa_accuracy
from bench.scoring import Mark, by_rules
from bench.short_answers import TEMPLATE, official, prompt
from bench.task import LMMS, OFFICIAL, Row, Source, Task
from bench.vqa_files import read_vqa


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval's accuracy, which always normalises."""
    return Mark(hit=vqa_accuracy.lmms_evalai(reply, row.gold), read=reply[:40])


OK_VQA = Task(
    name="ok_vqa",
    title="OK-VQA",
    version="1.1",
    language="en",
    template=TEMPLATE,
    rule="the VQA challenge's own code",
    source=Source(
        files="questions and annotations of val2014 (JSON) with val2014/",
        licence="CC-BY-4.0",
        urls=(
            "https://okvqa.allenai.org/static/data/OpenEnded_mscoco_val2014_questions.json.zip",
            "https://okvqa.allenai.org/static/data/mscoco_val2014_annotations.json.zip",
            "http://images.cocodataset.org/zips/val2014.zip",
        ),
    ),
    compats=(OFFICIAL, LMMS),
    load=read_vqa,
    prompt=prompt,
    score=by_rules({OFFICIAL: official, LMMS: lmms}),
)
