"""What an order by length sorts by: headers and characters, and how far the processors agree."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genrecal.core.errors import GenrecalError
from genrecal.core.images import image_size, open_image
from genrecal.data.inputs import encode_prompt, image_token_counts
from genrecal.data.lengths import HEAD_BYTES, SIZES, image_sizes
from genrecal.data.mixture import MixtureConfig, SourceConfig, read_mixture
from genrecal.models.processors import load_processor
from tests.data.test_hostile import FailingDisk
from tests.families import ReadFamily
from tests.hostile import write_hostile
from tests.tiny import TinyData, TinyPair

SIZES_PX = ((33, 57), (48, 48), (120, 41), (200, 100), (20, 90))


def test_tokens_of_an_image_are_those_of_its_prompt(family: ReadFamily) -> None:
    """But for a constant number that a template puts around each."""

    def tokens(*images: Image.Image) -> int:
        parts = [{"type": "image"} for _ in images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": "hi"}]}
        return len(encode_prompt(family.processor, [message], images).ids)

    counted = image_token_counts(family.processor, np.array(SIZES_PX))
    around = [
        tokens(Image.new("RGB", size)) - tokens() - count
        for size, count in zip(SIZES_PX, counted.tolist(), strict=True)
    ]
    assert len(set(around)) == 1 and 0 <= around[0] <= 8


def test_lengths_are_of_text_and_images(tiny_pair: TinyPair, tiny_data: TinyData, tmp_path: Path) -> None:
    mixture = read_mixture([SourceConfig(path=tiny_data.path)], cache=tmp_path)
    processors = [load_processor(tiny_pair.student), load_processor(tiny_pair.teacher)]
    images = [
        sum(image_token_counts(processor, np.array([open_image(one).size])).sum() for one in sample.images)
        for sample in mixture
        for processor in processors
    ]
    text = [sum(len(turn.text) for turn in sample.turns) // 4 * 2 for sample in mixture]
    assert mixture.token_lengths(processors).tolist() == [
        words + sum(images[2 * place : 2 * place + 2]) for place, words in enumerate(text)
    ]
    # The student's alone, and of a choice of the samples.
    chosen = np.arange(len(mixture)) % 3 == 0
    alone = mixture.token_lengths(processors[:1])
    assert mixture.only(chosen).token_lengths(processors[:1]).tolist() == alone[chosen].tolist()


def test_sizes_of_every_kind_of_image(tmp_path: Path) -> None:
    """Files, members of a tar and bytes in a table, sound or not; each header is looked at once."""
    data = write_hostile(tmp_path / "data")
    sources = tuple(SourceConfig(path=path, domain="knowledge") for path in data.sources)
    config = MixtureConfig(sources=sources, on_bad="skip", max_bad=100, buckets=1)
    mixture = read_mixture(config, cache=tmp_path / "cache")
    for table in mixture.tables:
        assert (table.folder / SIZES).is_file()
        sizes = image_sizes(table).tolist()
        assert len(sizes) == sum(len(table[row].images) for row in range(len(table)))
        named = [image for row in range(len(table)) for image in table[row].images]
        for image, size in zip(named, sizes, strict=True):
            assert tuple(size) == image_size(image)
    by_id = {sample.id: sample for sample in mixture}
    assert image_size(by_id["tar turned"].images[0]) == (24, 40)  # as it lies; a turn costs no token
    assert image_size(by_id["parquet page"].images[0]) == (0, 0)
    assert image_size(by_id["broken bomb.png"].images[0]) == (0, 0)
    assert image_size(by_id["broken tall.png"].images[0]) == (1, 20_000)


def test_what_no_reader_opens_counts_nothing(tiny_pair: TinyPair, tmp_path: Path) -> None:
    data = write_hostile(tmp_path / "data")
    sources = tuple(SourceConfig(path=path, domain="knowledge") for path in data.sources)
    mixture = read_mixture(
        MixtureConfig(sources=sources, on_bad="skip", max_bad=100), cache=tmp_path / "cache"
    )
    lengths = mixture.token_lengths([load_processor(tiny_pair.student)])
    text = len("<image>\nwhat is in the picture?a cat") // 4
    by_id = dict(zip((sample.id for sample in mixture), lengths.tolist(), strict=True))
    assert by_id["broken empty.png"] == by_id["broken tall.png"] == text < by_id["picture plain.jpg"]


def test_a_header_behind_a_large_thumbnail(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    stream = io.BytesIO()
    Image.new("RGB", (300, 200)).save(
        stream, "JPEG", exif=exif, icc_profile=b"x" * 60_000, quality=100, comment=b"x" * 30_000
    )
    row = {"id": "a", "domain": "knowledge", "question": "<image>", "answer": "b"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.json", json.dumps(row).encode()), ("0.jpg", stream.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    mixture = read_mixture([SourceConfig(path=tmp_path / "a.tar")], cache=tmp_path / "cache")
    (image,) = mixture[0].images
    assert image_size(dataclasses.replace(image, size=HEAD_BYTES)) == (0, 0)
    assert image_sizes(mixture.tables[0]).tolist() == [[300, 200]]


def test_a_failing_disk_is_no_missing_header() -> None:
    with pytest.raises(GenrecalError, match="cannot be read now"):
        image_size(FailingDisk())
