"""Every hostile sample, read as training reads it: through tables, worker processes and both processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.images import open_image
from genrecal.data.batch import PairedBatch
from genrecal.data.inputs import encode_prompt
from genrecal.data.mixture import Mixture, MixtureConfig, SourceConfig, read_mixture
from genrecal.data.pair import PairReader
from genrecal.data.quarantine import Quarantine
from genrecal.models.processors import load_processor
from genrecal.train.feed import Feed, micro_batches
from genrecal.train.settings import DataConfig
from tests.hostile import (
    MAX_TOKENS,
    Case,
    HostileData,
    hostile_lines,
    parquet_cases,
    scene,
    tar_cases,
    write_hostile,
)
from tests.tiny import TinyPair

CASES = (*hostile_lines(), *parquet_cases(), *tar_cases())
assert len({case.name for case in CASES}) == len(CASES) >= 40
# Mean difference of normalised pixels that JPEG may make.
JPEG_TOLERANCE = 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of all samples."""

    reader: PairReader
    mixture: Mixture
    rows: dict[str, str]  # by id, or "line N" and "key" where it has none: why a row was left out
    batches: dict[str, list[PairedBatch]]  # by id, of one sample each
    left_out: dict[str, str]  # by id: why a sample was


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as the only rank."""
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> HostileData:
    return write_hostile(tmp_path_factory.mktemp("hostile") / "data")


@pytest.fixture(scope="module")
def found(
    one_rank: None, data: HostileData, tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory
) -> Found:
    """Everything read once, in the order of the seed, by a worker process."""
    cache = tmp_path_factory.mktemp("cache")
    config = _config(data)
    mixture = read_mixture(config, cache=cache)
    reader = PairReader(
        mixture,
        student=load_processor(tiny_pair.student),
        teachers=[load_processor(tiny_pair.teacher)],
        max_tokens=MAX_TOKENS,
    )
    quarantine = Quarantine(cache / "quarantine", skips=True, limit=len(CASES))
    feed = Feed(
        reader=reader,
        quarantine=quarantine,
        data=config,
        seed=0,
        steps=len(mixture),
        micro_batch=1,
        accumulation=1,
    )
    batches: dict[str, list[PairedBatch]] = {}
    left_out: dict[str, str] = {}
    for batch in micro_batches(feed, first=0):
        for one in batch.quarantined:
            left_out[one.id] = one.what
        for name in batch.ids:
            batches.setdefault(name, []).append(batch)
    journals = [path.read_text().splitlines() for path in cache.glob("*/bad.jsonl")]
    rows = {}
    for facts in (json.loads(line) for journal in journals for line in journal):
        rows[str(facts["id"] if facts["id"] is not None else facts["where"])] = facts["what"]
    return Found(reader=reader, mixture=mixture, rows=rows, batches=batches, left_out=left_out)


def _config(data: HostileData, **settings: Any) -> DataConfig:
    sources = tuple(SourceConfig(path=path, domain="knowledge") for path in data.sources)
    settings = {"on_bad": "skip", "max_bad": len(CASES), "workers": 1, **settings}
    return DataConfig(sources=sources, max_tokens=MAX_TOKENS, **settings)


def test_nothing_is_lost(found: Found, data: HostileData) -> None:
    kept = sum(len(batches) for batches in found.batches.values())
    assert (len(found.rows), len(found.left_out), kept) == (
        data.count("row"),
        data.count("sample"),
        data.count("kept"),
    )
    assert found.mixture.skipped + len(found.mixture) == len(data.cases)
    assert kept + len(found.left_out) == len(found.mixture)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("ascii", "replace").decode())
def test_each_is_kept_or_left_out_for_its_reason(found: Found, data: HostileData, case: Case) -> None:
    if case.fate == "row":
        name = case.name if isinstance(case.row, dict) or case.name in found.rows else _place(case, data)
        assert case.says in found.rows[name]
    elif case.fate == "sample":
        assert case.name not in found.batches
        assert case.says in found.left_out[case.name]
    else:
        assert case.name not in found.left_out
        _require_read_right(found, case)


def _place(case: Case, data: HostileData) -> str:
    """How a row without an id is called."""
    if case in tar_cases():
        return f"{data.sources[2]} key '{case.name}'"
    return f"{data.sources[0]} line {data.cases.index(case) + 1}"


def _require_read_right(found: Found, case: Case) -> None:
    name = case.row.get("id", case.name) if isinstance(case.row, dict) else case.name
    reader = found.reader
    sides = [("student", reader.student), ("teacher", reader.teachers[0])]
    read = []
    for side, processor in sides:
        for paired in found.batches[name]:
            batch = paired.student if side == "student" else paired.teachers[0]
            read.append(processor.tokenizer.decode(batch.input_ids_BS[0][batch.attention_mask_BS[0].bool()]))
            if case.image is not None:
                message = {"role": "user", "content": [{"type": "image"}]}
                wanted = encode_prompt(processor, [message], [case.image]).vision["pixel_values"]
                pixels = batch.vision["pixel_values"]
                assert pixels.shape == wanted.shape
                difference = (pixels - wanted).abs().mean()
                assert difference <= (JPEG_TOLERANCE if case.lossy else 1e-6), difference
    assert sum(case.says in text for text in read) >= len(sides)


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (100, 3), (3, 100)])
def test_a_thin_image_keeps_its_colour(found: Found, size: tuple[int, int]) -> None:
    """Processors guess where the channels are; 1 or 3 rows of pixels look as if these were the channels."""
    (batch,) = found.batches[f"picture {size[0]}x{size[1]}.png"]
    processor = found.reader.student.image_processor
    mean, std = (torch.tensor(part) for part in (processor.image_mean, processor.image_std))
    wanted = (torch.tensor([220, 120, 30]) / 255 - mean) / std
    # Patches lie as channels x time x height x width.
    pixels = batch.student.vision["pixel_values"].unflatten(1, (3, -1))
    assert torch.allclose(pixels, wanted[None, :, None].expand_as(pixels), atol=1e-4)


def test_a_turn_has_the_tokens_of_the_template_alone(found: Found) -> None:
    """As many turns as the row has, whatever its texts say."""
    processor = found.reader.student
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for name, turns in {"two questions in a row": 3, "system turn": 3, "tags": 2}.items():
        (batch,) = found.batches[name]
        default = 0 if name == "system turn" else _default_system_turns(processor)
        ids = batch.student.input_ids_BS[0][batch.student.attention_mask_BS[0].bool()]
        assert int((ids == end).sum()) == turns + default


def _default_system_turns(processor: Any) -> int:
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])
    return text.count("system")


def test_without_skip_the_first_one_stops_and_is_named(
    one_rank: None, data: HostileData, found: Found, tmp_path: Path
) -> None:
    quarantine = Quarantine(tmp_path, skips=False)
    feed = Feed(
        reader=found.reader,
        quarantine=quarantine,
        data=_config(data, on_bad="stop"),
        seed=0,
        steps=len(found.mixture),
        micro_batch=1,
        accumulation=1,
    )
    with pytest.raises(DataError) as caught:
        list(micro_batches(feed, first=0))
    line = str(caught.value)
    assert "data.on_bad: skip" in line and "\n" not in line
    assert any(f"ample '{name}' of" in line for name in found.left_out)
    with pytest.raises(DataError, match="rows cannot be used"):
        read_mixture(MixtureConfig(sources=_config(data).sources), cache=tmp_path / "cache")


LARGE = """
import resource, sys
from pathlib import Path
from PIL import Image
from genrecal.core.images import open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = open_image(Path(sys.argv[1]))
print(image.size, image.getpixel((5, 11_000)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_image_takes_the_memory_of_one_copy(tmp_path: Path) -> None:
    """12,000 x 12,000 is within the limits; pillow holds 4 bytes a pixel, and we no second copy."""
    side, path = 12_000, tmp_path / "large.png"
    Image.new("RGB", (side, side), (220, 120, 30)).save(path, compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith(f"({side}, {side}) (220, 120, 30) ") and not done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 4.4 * side * side


def test_what_stands_in_an_images_place(tmp_path: Path) -> None:
    """A row may name it after its table was built: nothing is waited for and nothing endless is read."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "sound.png").write_bytes(b"")
    reasons = {
        tmp_path / "pipe.png": "is no regular file",
        tmp_path / "circle.png": "is a link in a circle",
        Path("/dev/zero"): "is no regular file",
        tmp_path: "is a folder, not an image",
        tmp_path / "nowhere.png": "no such image",
        tmp_path / ("a" * 300): "has too long a name",
    }
    for path, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            open_image(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match="may not be read"):
        open_image(tmp_path / "a.png")


class FailingDisk:
    """A stored image on a disk that fails: no fault of the image."""

    def read(self) -> bytes:
        raise OSError(5, "Input/output error")

    def __str__(self) -> str:
        return "a.png"


def test_a_failing_disk_is_no_bad_sample() -> None:
    with pytest.raises(GenrecalError, match=r"a\.png: cannot be read now \(Input/output error\)") as caught:
        open_image(FailingDisk())
    assert not isinstance(caught.value, DataError)
