"""Every format as its own library writes it, read back to the same samples; and what cannot be read."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import Sample
from genrecal.data.formats import recognise
from genrecal.data.mixture import Mixture, SourceConfig, read_mixture

QUESTIONS = ("what is this?", "compare the two.", "what is 1+1?", "and this one?")
ANSWERS = ("a cat", "the left one is larger", "2", "a dog… or a wolf")
IMAGES = (1, 2, 0, 1)  # of each sample
CONTEXT = 3  # the sample that has a turn before


def picture(sample: int, place: int) -> Image.Image:
    noise = np.random.default_rng([sample, place]).integers(0, 256, (12, 10 + sample, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(sample: int, place: int) -> bytes:
    stream = io.BytesIO()
    picture(sample, place).save(stream, "PNG")
    return stream.getvalue()


def data_uri(sample: int, place: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(sample, place)).decode()


def names(folder: Path, sample: int) -> list[str]:
    """Writes the sample's images and returns their paths."""
    found = []
    for place in range(IMAGES[sample]):
        name = f"images/{sample}_{place}.png"
        (folder / "images").mkdir(exist_ok=True)
        (folder / name).write_bytes(png(sample, place))
        found.append(name)
    return found


def spoken(sample: int) -> list[tuple[str, str]]:
    before = [("user", "hello"), ("assistant", "hello!")] if sample == CONTEXT else []
    question = "<image>\n" * IMAGES[sample] + QUESTIONS[sample]
    return [*before, ("user", question), ("assistant", ANSWERS[sample])]


def messages(sample: int) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in spoken(sample)]


def conversations(sample: int) -> list[dict[str, str]]:
    who = {"user": "human", "assistant": "gpt"}
    return [{"from": who[role], "value": text} for role, text in spoken(sample)]


def llava(folder: Path) -> Path:
    rows = [{"id": f"s{k}", "image": names(folder, k), "conversations": conversations(k)} for k in range(4)]
    (folder / "d.json").write_text(json.dumps(rows))
    return folder / "d.json"


def sharegpt(folder: Path) -> Path:
    rows = [{"id": f"s{k}", "images": names(folder, k), "messages": messages(k)} for k in range(4)]
    (folder / "d.json").write_text(json.dumps(rows, indent=1))
    return folder / "d.json"


def lines(folder: Path) -> Path:
    rows = [{"id": f"s{k}", "images": names(folder, k), "messages": messages(k)} for k in range(4)]
    (folder / "d.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    return folder / "d.jsonl"


def blocks(folder: Path) -> Path:
    """OpenAI's blocks: paths, data URIs, and places for the row's images."""
    rows = []
    for k in range(4):
        named, said = names(folder, k), messages(k)
        given = [{"type": "image", "image": name} for name in named]
        if k == 1:
            given[0] = {"type": "image_url", "image_url": {"url": data_uri(k, 0)}}
        if k == CONTEXT:
            given = [{"type": "image"}]
        said[-2]["content"] = [*given, {"type": "text", "text": QUESTIONS[k]}]
        rows.append({"id": f"s{k}", "messages": said, "images": named if k == CONTEXT else None})
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "d.jsonl"


def dataset(folder: Path) -> Path:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    turn = {"role": Value("string"), "content": Value("string")}
    columns = {
        "id": [f"s{k}" for k in range(4)],
        "images": [[picture(k, place) for place in range(IMAGES[k])] for k in range(4)],
        "messages": [messages(k) for k in range(4)],
    }
    features = Features({"id": Value("string"), "images": List(ImageFeature()), "messages": List(turn)})
    whole = Dataset.from_dict(columns, features=features)
    # Through an indices mapping: rows do not lie on disk as they are numbered.
    whole.select([3, 1, 2, 0]).select([3, 1, 2, 0]).save_to_disk(str(folder / "set"))
    return folder / "set"


def parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "id": f"s{k}",
            "images": [{"bytes": png(k, place), "path": None} for place in range(IMAGES[k])],
            "conversations": conversations(k),
            "score": k,
        }
        for k in range(4)
    ]
    (folder / "shards").mkdir()
    for number in range(2):
        table = pyarrow.Table.from_pylist(rows[2 * number : 2 * number + 2])
        pyarrow.parquet.write_table(table, folder / f"shards/train-{number:05d}-of-00002.parquet")
    return folder / "shards"


def tars(folder: Path) -> Path:
    from webdataset import TarWriter

    (folder / "shards").mkdir()
    for number in range(2):
        with TarWriter(str(folder / f"shards/a-{number:03d}.tar")) as writer:
            for k in (2 * number, 2 * number + 1):
                images = {f"{place}.png": png(k, place) for place in range(IMAGES[k])}
                writer.write({"__key__": f"s{k}", "json": {"messages": messages(k)}, **images})
    return folder / "shards" / "a-{000..001}.tar"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "sharegpt": sharegpt,
    "lines": lines,
    "blocks": blocks,
    "dataset": dataset,
    "parquet": parquet,
    "tars": tars,
}


def read(path: Path, **options: Any) -> Mixture:
    return read_mixture([SourceConfig(path=path, domain="knowledge", **options)])


def said(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    mixture = read(WRITERS[name](tmp_path))
    assert [sample.id for sample in mixture] == ["s0", "s1", "s2", "s3"]
    for k, sample in enumerate(mixture):
        assert said(sample) == spoken(k)
        assert sample.answer == ANSWERS[k] and sample.domain == "knowledge"
        opened = [open_image(image) for image in sample.images]
        assert [image.tobytes() for image in opened] == [
            picture(k, place).tobytes() for place in range(IMAGES[k])
        ]
    assert mixture.lengths[1] > mixture.lengths[0] > mixture.lengths[2]


@pytest.mark.parametrize("name", WRITERS)
def test_a_worker_gets_a_mixture_cheaply(name: str, tmp_path: Path) -> None:
    mixture = read(WRITERS[name](tmp_path))
    packed = pickle.dumps(mixture)
    assert len(packed) < 3000 and len(pickle.dumps(mixture[1])) < 2500
    copy = pickle.loads(packed)
    assert list(copy) == list(mixture)
    assert open_image(copy[1].images[1]).tobytes() == picture(1, 1).tobytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llava", "llava"),
        ("lines", "messages"),
        ("dataset", "datasets"),
        ("parquet", "parquet"),
        ("tars", "webdataset"),
    ],
)
def test_recognised_from_what_is_there(name: str, kind: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path)
    assert recognise(path) == kind
    if name in ("parquet", "tars"):
        shards = tmp_path / "shards"
        assert recognise(shards) == kind and len(read(shards)) == 4
        one = sorted(shards.iterdir())[1]
        assert [sample.id for sample in read(one)] == ["s2", "s3"]
        assert [sample.id for sample in read(shards / f"*1*{one.suffix}")] == ["s2", "s3"]


def named_in_error(image: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_image(image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_damaged_image_is_named_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("tars", "parquet"):
        (tmp_path / name).mkdir()
    mixture = read(tars(tmp_path / "tars"))
    image = mixture[0].images[0]
    assert str(image) == f"{tmp_path}/tars/shards/a-000.tar/s0.0.png"
    shard = tmp_path / "tars/shards/a-000.tar"
    content = bytearray(shard.read_bytes())
    content[image.offset + image.size // 2] ^= 255
    shard.write_bytes(content)
    assert named_in_error(image).startswith(f"{image}: cannot be decoded")
    shard.unlink()
    assert named_in_error(image) == f"{image}: no such image"
    folder = parquet(tmp_path / "parquet")
    one = next(folder.iterdir())
    one.write_bytes(one.read_bytes().replace(png(0, 0)[20:60], b"x" * 40))
    image = read(folder)[0].images[0]
    assert named_in_error(image).startswith(f"{folder / 'train-00000-of-00002.parquet'} row 0 image 0: ")


def test_lines_under_the_ending_of_a_list(tmp_path: Path) -> None:
    lines(tmp_path).rename(tmp_path / "d.json")
    assert len(read(tmp_path / "d.json")) == 4


def broken_cases(folder: Path) -> dict[str, tuple[Path, str]]:
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict

    (folder / "images").mkdir()
    both, splits, other, cut = (folder / name for name in ("both", "splits", "other", "cut"))
    for path in (both, splits):
        path.mkdir()
    (both / "a.tar").write_bytes(b"")
    (both / "b.parquet").write_bytes(b"")
    for name in ("train-0.parquet", "test-0.parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), splits / name)
    bare, named, shards, hub = (folder / name for name in ("bare", "named", "split-shards", "hub"))
    for path, names in {
        bare: ("train.parquet", "test.parquet"),
        named: ("aokvqa_train2017.parquet", "aokvqa_val2017.parquet"),
        shards: ("train.tar", "test.tar"),
        hub: ("default/partial-train/0000.parquet", "default/test/0000.parquet"),
    }.items():
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"")
    DatasetDict({"train": Dataset.from_dict({"a": [1]})}).save_to_disk(str(other))
    (folder / "a.csv").write_text("x")
    (folder / "one.json").write_text('{"messages": []}')
    (folder / "cut.json").write_text('[{"id": 1}, {"id"')
    (folder / "tail.json").write_text('[{"id": 1}] x')
    (folder / "comma.json").write_text('[{"id": 1} {"id": 2}]')
    (folder / "no.parquet").write_bytes(b"PAR1 and nothing")
    pyarrow.parquet.write_table(pyarrow.table({"caption": ["a"]}), folder / "columns.parquet")
    whole = (tars(folder).parent / "a-000.tar").read_bytes()
    cut.mkdir()
    (cut / "a.tar").write_bytes(whole[:2600])
    return {
        "two formats": (both, "it could be parquet or webdataset. Give the source `format`"),
        "several splits": (splits, "holds files of several splits (test, train). Name one split's folder"),
        "splits with nothing behind": (bare, "holds files of several splits (test, train)"),
        "splits behind a name": (named, "holds files of several splits (train, val)"),
        "tars of splits": (shards, "holds files of several splits (test, train)"),
        "folders of splits": (hub, "holds files of several splits (test, train)"),
        "a dict of splits": (other, "holds the splits train. Name one of them"),
        "unknown ending": (folder / "a.csv", "its ending '.csv' tells no format"),
        "nothing there": (folder / "no.csv", "no such file or folder"),
        "no such shard": (folder / "shards/a-{000..007}.tar", "a-002.tar: no such file"),
        "an object": (folder / "one.json", "neither a JSON list of conversations nor JSON lines"),
        "an empty folder": (folder / "images", "holds no data set on disk, no parquet files and no tars"),
        "cut off": (folder / "cut.json", "is not valid JSON (Expecting ':' delimiter"),
        "text behind": (folder / "tail.json", "is not valid JSON (text follows the list"),
        "no comma": (folder / "comma.json", "is not valid JSON (a row is followed by neither"),
        "no parquet": (folder / "no.parquet", "is no readable parquet file"),
        "other columns": (folder / "columns.parquet", "has no column with conversations, but caption"),
        "a tar that breaks off": (cut / "a.tar", "is no whole, uncompressed tar"),
        "many JSON files": (folder / "*.json", "is a pattern; 'llava' is one file"),
    }


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for case, (path, message) in broken_cases(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read(path)
        assert message in str(caught.value) and "\n" not in str(caught.value), case
        assert str(tmp_path) in str(caught.value), case


def test_a_named_format_is_taken_at_its_word(tmp_path: Path) -> None:
    path = lines(tmp_path)
    path.rename(tmp_path / "d.txt")
    assert len(read(tmp_path / "d.txt", format="messages")) == 4
    row = {"image": [], "images": ["a.png"], "messages": [], "conversations": conversations(2)}
    (tmp_path / "both.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="has both 'messages' and 'conversations'"):
        read(tmp_path / "both.json")
    assert read(tmp_path / "both.json", format="llava")[0].answer == "2"


def test_one_split_in_any_layout_is_read(tmp_path: Path) -> None:
    import pyarrow.parquet

    for layout in (
        "train.parquet",
        "train-00000-of-00001.parquet",
        "default/train/0000.parquet",
        "data.parquet",
    ):
        folder = tmp_path / layout.replace("/", "-")
        (folder / layout).parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), folder / layout)
        assert len(read(folder)) == 1


def test_boxes_of_a_table_are_seen(tmp_path: Path) -> None:
    import pyarrow.parquet

    for question, refused in (("where is <ref-object>?", True), ("where is it?", False)):
        table = pyarrow.table({"question": [question], "answer": ["b"], "objects": [{"ref": ["a cat"]}]})
        pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
        if refused:
            with pytest.raises(DataError, match="has '<ref-object>' in its text"):
                read(tmp_path / "d.parquet")
        else:
            assert len(read(tmp_path / "d.parquet")) == 1


@pytest.mark.parametrize("prefix", ["file://", "FILE://"])
def test_a_path_as_an_address_and_an_empty_list_beside_a_full_one(prefix: str, tmp_path: Path) -> None:
    (name,) = names(tmp_path, 0)
    block = {"type": "image_url", "image_url": {"url": f"{prefix}{tmp_path / name}"}}
    rows = [
        {"messages": [{"role": "user", "content": [block, "what?"]}, messages(0)[1]]},
        {"image": [], "images": [name], "messages": messages(0)},
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    for sample in read(tmp_path / "d.json"):
        assert [open_image(image).tobytes() for image in sample.images] == [picture(0, 0).tobytes()]
