"""VQAv2: short answers about COCO's images, against ten annotators."""

from __future__ import annotations

from bench.prompt_parts import images_first
from bench.rules import vqa_accuracy
from bench.scoring import Mark, by_rules
from bench.task import LMMS, OFFICIAL, Row, Source, Task
from bench.types import Query
from bench.vqa_files import read_vqa

LAST_LINE = "\nAnswer the question using a single word or phrase."
TEMPLATE = f"image, then {{question}}{LAST_LINE}"


def prompt(row: Row) -> Query:
    """Image, question, the instruction."""
    return images_first(row, row.question + LAST_LINE)


def official(row: Row, reply: str) -> Mark:
    """The VQA challenge's accuracy."""
    return Mark(hit=vqa_accuracy.official(reply, row.gold), read=reply[:40])


def lmms(row: Row, reply: str) -> Mark:
    """lmms-eval's accuracy, which always normalises."""
    return Mark(hit=vqa_accuracy.lmms(reply, row.gold), read=reply[:40])


VQAV2 = Task(
    name="vqav2",
    title="VQAv2",
    version="2",
    language="en",
    template=TEMPLATE,
    rule="the VQA challenge's own code",
    source=Source(
        files="questions and annotations of val2014 (JSON) with val2014/",
        licence="CC-BY-4.0",
        urls=(
            "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Questions_Val_mscoco.zip",
            "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Annotations_Val_mscoco.zip",
            "http://images.cocodataset.org/zips/val2014.zip",
        ),
    ),
    compats=(OFFICIAL, LMMS),
    load=read_vqa,
    prompt=prompt,
    score=by_rules({OFFICIAL: official, LMMS: lmms}),
)
