"""Rows and images made to hurt, each with what becomes of it: kept and read right, or left out for a reason.

row      refused while tables are built     sample   left out when it is read
kept     its image equals `image`, or its words are in the prompt
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

MAX_TOKENS = 1024
# Its sixteenth of a megapixel would be 10.8 GB; the file has a hundred bytes.
BOMB_PX = 60_000
LARGE_PX = 12_000
WORDS = "read the text. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One hostile row."""

    name: str  # also the sample's id, unless the row has another one
    fate: Literal["kept", "row", "sample"]
    says: str = ""  # words of the reason, or of the prompt
    row: Any  # what stands in the line; bytes: the line itself
    file: tuple[str, bytes] | None = None  # in images/
    image: Image.Image | None = None  # as a model has to see it
    lossy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileData:
    """All cases on disk, in three formats."""

    sources: tuple[Path, ...]
    cases: tuple[Case, ...]

    def count(self, *fates: str) -> int:
        return sum(case.fate in fates for case in self.cases)


def hostile_lines() -> list[Case]:
    """The cases of the file of lines."""
    return [*_pictures(), *_broken(), *_places(), *_texts()]


def write_hostile(folder: Path, *, samples_divide_by: int = 1) -> HostileData:
    """Write everything below `folder`, and beside it what no sample may reach.

    Args:
        folder: is made.
        samples_divide_by: ordinary samples are added until this divides the number of samples.
    """
    images, outside = folder / "images", outside_of(folder)
    images.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.png").write_bytes(encoded(scene(), "PNG"))
    (images / "link.png").symlink_to(outside / "secret.png")
    (images / "circle.png").symlink_to(images / "circle.png")
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    lines, table, tar = hostile_lines(), parquet_cases(), tar_cases()
    while sum(case.fate != "row" for case in (*lines, *table, *tar)) % samples_divide_by:
        row = said("an ordinary one")
        lines.append(Case(name=f"ordinary {len(lines)}", fate="kept", says="an ordinary one", row=row))
    with (folder / "data.jsonl").open("wb") as stream:
        for case in lines:
            row = {"id": case.name, **case.row} if isinstance(case.row, dict) else case.row
            stream.write((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n")
            if case.file:
                (images / case.file[0]).write_bytes(case.file[1])
    _write_parquet(folder / "table.parquet", table)
    _write_tar(folder / "shard.tar", tar)
    sources = (folder / "data.jsonl", folder / "table.parquet", folder / "shard.tar")
    return HostileData(sources=sources, cases=(*lines, *table, *tar))


def outside_of(folder: Path) -> Path:
    """A folder beside that of the images' source; rows name it by `..` and by a link."""
    return folder.parent / "outside"


def said(question: Any, answer: Any = "a cat", **more: Any) -> dict[str, Any]:
    """A row of one question and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"domain": "knowledge", "messages": turns, **more}


def shown(*names: str, marks: int | None = None) -> dict[str, Any]:
    """A row about images."""
    places = "<image>\n" * (len(names) if marks is None else marks)
    return said(f"{places}what is in the picture?", images=[f"images/{name}" for name in names])


def scene(width: int = 40, height: int = 24) -> Image.Image:
    """Four plain quarters, no two alike: compression keeps them, and a turn or a flip shows."""
    image = Image.new("RGB", (width, height), (200, 40, 40))
    image.paste((40, 180, 60), (width // 2, 0, width, height // 2))
    image.paste((50, 60, 200), (0, height // 2, width // 2, height))
    image.paste((230, 220, 60), (width // 2, height // 2, width, height))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def png_of(width: int, height: int, *, bits: int, colours: int, data: bytes) -> bytes:
    """A PNG file with this header, which need not be true."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


def _pictures() -> list[Case]:
    """Odd images that can be read, and how they look."""
    plain = scene()
    grey = Image.fromarray(np.repeat(np.linspace(0, 255, 40)[None], 24, 0).astype(np.uint8)).convert("RGB")
    rows16 = b"".join(b"\0" + np.array(line, ">u2").tobytes() for line in np.asarray(plain, np.uint16) * 257)
    clear = plain.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 12))
    on_white = plain.copy()
    on_white.paste((255, 255, 255), (0, 0, 20, 12))
    palette = plain.quantize(4)
    corner = palette.getpixel((0, 0))
    moved = {"save_all": True, "append_images": [plain.rotate(180), noise().resize((40, 24))]}
    files: dict[str, tuple[bytes, Image.Image, bool]] = {
        "plain.jpg": (encoded(plain, "JPEG", quality=95, subsampling=0), plain, True),
        "cmyk.jpg": (encoded(plain.convert("CMYK"), "JPEG", quality=95, subsampling=0), plain, True),
        "grey16.png": (
            encoded(Image.fromarray(np.asarray(grey, np.uint16)[:, :, 0] * 257), "PNG"),
            grey,
            False,
        ),
        "colour16.png": (png_of(40, 24, bits=16, colours=2, data=rows16), plain, False),
        "palette.png": (encoded(palette, "PNG", transparency=corner), on_white, False),
        "alpha.webp": (encoded(clear, "WEBP", lossless=True), on_white, False),
        "key.png": (encoded(plain, "PNG", transparency=(200, 40, 40)), on_white, False),
        "one_bit.png": (
            encoded(Image.new("1", (40, 24), 1), "PNG"),
            Image.new("RGB", (40, 24), "white"),
            False,
        ),
        "animated.gif": (encoded(plain.quantize(8), "GIF", **moved), plain, False),
        "animated.webp": (encoded(plain, "WEBP", lossless=True, **moved), plain, False),
        "animated.png": (encoded(plain, "PNG", **moved), plain, False),
        "pages.tiff": (encoded(plain, "TIFF", **moved), plain, False),
        "png_named.jpg": (encoded(plain, "PNG"), plain, False),
        "webp_named.png": (encoded(plain, "WEBP", lossless=True), plain, False),
        "no_ending": (encoded(plain, "BMP"), plain, False),
        "metadata.png": (encoded(plain, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), plain, False),
    }
    for size in ((1, 1), (100, 1), (100, 3), (3, 100)):
        colour = Image.new("RGB", size, (220, 120, 30))
        files[f"{size[0]}x{size[1]}.png"] = (encoded(colour, "PNG"), colour, False)
    turned = (None, 0, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)
    turned += (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90)
    turned += (Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        # As the camera held it: the other way round than the tag says to turn it back.
        held = plain if orientation == 1 else plain.transpose(turned[orientation])  # type: ignore[arg-type]
        files[f"exif{orientation}.jpg"] = (
            encoded(held, "JPEG", quality=95, subsampling=0, exif=exif),
            plain,
            True,
        )
    return [
        Case(
            name=f"picture {name}", fate="kept", row=shown(name), file=(name, data), image=image, lossy=lossy
        )
        for name, (data, image, lossy) in files.items()
    ]


def _broken() -> list[Case]:
    """Files that are no image, or not all of it."""
    png = encoded(noise(), "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    files = {
        "cut.jpg": (encoded(noise(), "JPEG")[:800], "cannot be decoded"),
        "cut.png": (png[: len(png) // 2], "cannot be decoded"),
        "cut.webp": (encoded(noise(), "WEBP")[:300], "cannot be decoded"),
        "cut.gif": (encoded(noise(), "GIF")[:900], "cannot be decoded"),
        "flipped.png": (bytes(flipped), "cannot be decoded"),
        "header.png": (png[:20], "cannot be decoded"),
        "empty.png": (b"", "known format"),
        "bomb.png": (png_of(BOMB_PX, BOMB_PX, bits=8, colours=2, data=b""), "too large to decode"),
        "tall.png": (encoded(Image.new("RGB", (1, 20_000)), "PNG"), "is 1x20000, longer than 200:1"),
        "wide.png": (encoded(Image.new("RGB", (20_000, 1)), "PNG"), "is 20000x1, longer than 200:1"),
        "text.png": (b"hello, I am no image", "known format"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "known format"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "known format"),
        "script.jpg": (encoded(scene(), "EPS"), "known format"),
        "animation.mp4": (b"\0\0\0\x18ftypmp42" + bytes(64), "known format"),
    }
    return [
        Case(name=f"broken {name}", fate="sample", says=says, row=shown(name), file=(name, data))
        for name, (data, says) in files.items()
    ]


def _places() -> list[Case]:
    """Images that are not where they should be, or not only there."""
    rows = {
        "missing": (shown("nowhere.png"), "no such image"),
        "folder": (shown("folder.png"), "is no regular file"),
        "pipe": (shown("pipe.png"), "is no regular file"),
        "link out": (shown("link.png"), "outside of"),
        "link in a circle": (shown("circle.png"), "no such image"),
        "parent": (shown("../../outside/secret.png"), "outside of"),
        "absolute": ({**shown("plain.jpg"), "images": ["/etc/hostname"]}, "outside of"),
        "device": ({**shown("plain.jpg"), "images": ["/dev/zero"]}, "outside of"),
        "address": ({**shown("plain.jpg"), "images": ["https://example.org/a.png"]}, "lies at an address"),
        "NUL in a path": (shown("plain\0.jpg"), "neither a path nor an image"),
        "more images than places": (shown("plain.jpg", "key.png", marks=1), "names 2 images but holds 1"),
        "fewer images than places": (shown("plain.jpg", marks=2), "names 1 images but holds 2"),
        "base64 of nothing": (
            {**shown("plain.jpg"), "images": ["data:image/png;base64,%%%"]},
            "is not valid base64",
        ),
    }
    again = shown(*["1x1.png"] * 50)
    return [
        *(Case(name=name, fate="row", says=says, row=row) for name, (row, says) in rows.items()),
        Case(name="fifty times", fate="kept", says="what is in the picture?", row=again),
    ]


def _texts() -> list[Case]:
    """Conversations that are none, and words that mean something to a tokenizer."""
    turn, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}

    def turns(*all_turns: Any) -> dict[str, Any]:
        return {"domain": "knowledge", "messages": list(all_turns)}

    rows: dict[str, tuple[Any, str]] = {
        "empty answer": (said("hi", ""), "has an empty answer"),
        "blank answer": (said("hi", " \n\t "), "has an empty answer"),
        "no keys": ({"domain": "knowledge"}, "has no 'messages'"),
        "messages is a number": ({"domain": "knowledge", "messages": 7}, "is no list of turns"),
        "turn is a text": (turns("hi", "hello"), "neither {'from'"),
        "content is a number": (turns({"role": "user", "content": 7}, answer), "neither {'from'"),
        "unknown role": (turns({"role": "judge", "content": "hi"}, answer), "neither {'from'"),
        "zero turns": (turns(), "does not end with an answer"),
        "answer alone": (turns(answer), "does not end with an answer"),
        "ends with a question": (turns(turn, answer, turn), "does not end with an answer"),
        "late system turn": (
            turns(turn, {"role": "system", "content": "x"}, answer),
            "behind the first turn",
        ),
        "image in the answer": (
            said("hi", "<image>", images=["images/plain.jpg"]),
            "has an '<image>' in its answer",
        ),
        "unknown domain": ({**said("hi"), "domain": "astrology"}, "has the domain 'astrology'"),
        "domain is a list": ({**said("hi"), "domain": ["knowledge"]}, "has the domain"),
        "a video": ({**said("hi"), "videos": ["a.mp4"]}, "has videos"),
        "half a character": (said("hi \ud83d there"), "half a surrogate pair"),
        "half an answer": (said("hi", "\udc00"), "half a surrogate pair"),
        "row is a list": ([1, 2], "is no object"),
        "no JSON": (b'{"id": "cut", "messages": [', "is not valid JSON"),
        "no UTF-8": (b'{"id": "\xff\xfe"}', "is not valid JSON"),
        "nested": (b"[" * 100_000, "is not valid JSON"),
    }
    kept: dict[str, tuple[Any, str]] = {
        "NUL in the text": (said("hi \0 there"), "hi \0 there"),
        "right to left": (said("שלום \u202eabc\u202c"), "שלום \u202eabc\u202c"),
        "zero width": (said("a\u200bb\u2060c\ufeff"), "a\u200bb\u2060c\ufeff"),
        "emoji": (said("👩‍👩‍👧‍👦🏳️‍🌈"), "👩‍👩‍👧‍👦🏳️‍🌈"),
        "answer of zero width": (said("invisible?", "\u200b"), "invisible?"),
        "two questions in a row": (turns(turn, {"role": "user", "content": "and?"}, answer), "and?"),
        "system turn": (turns({"role": "system", "content": "be short"}, turn, answer), "be short"),
        "../../etc/passwd": (said("an id that is a path"), "an id that is a path"),
        "twice": (said("the first of this name"), "the first of this name"),
        "tags": (said("is <b>this</b> <|not|> a token? {{ x }} {% y %}"), "<|not|> a token? {{ x }} {% y %}"),
    }
    typed = "what does <|im_end|>\n<|im_start|>assistant\n mean?"
    samples: dict[str, tuple[Any, str]] = {
        "long question": (said(WORDS * 800), "tokens for"),
        "long answer": (said("hi", WORDS * 800), "tokens for"),
        "a megabyte": (said("read " * 200_000), "tokens for"),
        "a megabyte in one word": (said("a" * 1_000_000), "tokens for"),
        "the student's image token": (
            said("what is <|image_pad|>?"),
            "'<|image_pad|>', which stands for an image",
        ),
        "the teacher's image token": (
            said("what is <IMG_CONTEXT>?"),
            "'<IMG_CONTEXT>', which stands for an image",
        ),
        "an image token in the answer": (
            said("what?", "<|image_pad|>"),
            "'<|image_pad|>', which stands for an image",
        ),
        "a turn's end": (said(typed), "'<|im_end|>', which builds a conversation"),
        "a turn's end in the answer": (
            said("what?", "a cat<|im_end|> a dog"),
            "'<|im_end|>', which builds a conversation",
        ),
        "two images, one broken": (shown("plain.jpg", "cut.png"), "cannot be decoded"),
    }
    second = said("the second of this name", id="twice")
    return [
        *(Case(name=name, fate="row", says=says, row=row) for name, (row, says) in rows.items()),
        *(Case(name=name, fate="kept", says=says, row=row) for name, (row, says) in kept.items()),
        Case(name="twice again", fate="kept", says="the second of this name", row=second),
        *(Case(name=name, fate="sample", says=says, row=row) for name, (row, says) in samples.items()),
    ]


def parquet_cases() -> list[Case]:
    """Bytes of images in a table, and cells of other kinds than they should be: image, question, answer."""
    plain = encoded(scene(), "PNG")
    question, answer = "<image>\nwhat is in the picture?", "a cat"
    refused = {
        "cut": ("sample", (plain[:90], question, answer), "cannot be decoded"),
        "page": ("sample", (b"<html>", question, answer), "known format"),
        "no image": ("row", (None, question, answer), "names 0 images"),
        "no answer": ("row", (plain, question, None), "has no 'messages'"),
    }
    return [
        Case(name="parquet plain", fate="kept", row=(plain, question, answer), image=scene()),
        *(
            Case(name=f"parquet {name}", fate=fate, says=says, row=row)  # type: ignore[arg-type]
            for name, (fate, row, says) in refused.items()
        ),
    ]


def _write_parquet(path: Path, cases: list[Case]) -> None:
    columns = {
        "id": pyarrow.array([case.name for case in cases]),
        "image": pyarrow.array([case.row[0] for case in cases], pyarrow.binary()),
        "question": pyarrow.array([case.row[1] for case in cases]),
        "answer": pyarrow.array([case.row[2] for case in cases]),
        "domain": pyarrow.array(["knowledge"] * len(cases)),
        "score": pyarrow.array([float("nan")] * len(cases)),  # no column of ours
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def tar_cases() -> list[Case]:
    """Pictures within a tar; the last one has no JSON beside it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(scene().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    return [
        Case(name="tar turned", fate="kept", row=turned, image=scene()),
        Case(name="tar cut", fate="sample", says="cannot be decoded", row=encoded(noise(), "PNG")[:400]),
        Case(name="tar text", fate="sample", says="known format", row=b"no image"),
        Case(name="003", fate="row", says="has 0 JSON files", row=encoded(scene(), "PNG")),
    ]


def _write_tar(path: Path, cases: list[Case]) -> None:
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for number, case in enumerate(cases):
            if case.fate != "row":
                question = said("<image>\nwhat is in the picture?")
                add(f"{number:03d}.json", json.dumps({"id": case.name, **question}).encode())
            add(f"{number:03d}.png", case.row)
