"""What an ONNX file makes ONNX Runtime read besides itself, found without the onnx package.

A small reader of protobuf's wire format: it walks the messages in which a tensor can stand (initializers,
sparse ones, attributes, sub-graphs, functions, training graphs) and notes the external data of each tensor.
It knows nothing else of ONNX and keeps nothing in memory; numbers of fields as in onnx.proto.

    record = varint tag (field number << 3 | wire type), then a varint (0), 8 bytes (1), a length and so
    many bytes (2), or 4 bytes (5). Groups (3, 4) are not written by anybody and are refused.

Where this reader and ONNX Runtime's could differ (fields that stand twice, odd encodings), it refuses or
looks at all of them, so that what it lets pass names no other file than those it has seen.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.sealed import safe_name
from genrecal.core.errors import BuildError
from genrecal.core.files import open_regular

MAX_DEPTH = 64
MAX_FIELDS = 8_000_000
# message -> field -> the message in it
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_OP_TYPE, _LOCATION_FIELD, _KEY, _VALUE = 4, 14, 1, 2
# Nodes that carry a compiled engine or name a file with one: nothing that can be checked here.
_OPAQUE = {b"EPContext"}
_DECIMAL = re.compile(r"[0-9]{1,15}", re.ASCII)
_KNOWN = {"location", "offset", "length", "checksum"}
# ONNX Runtime opens a file of another ending as another format.
ENDING = ".onnx"
_PAGE = 1 << 18
_TEXT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalData:
    """Where a tensor's values lie, relative to the folder of its graph."""

    location: str
    offset: int
    length: int


def external_data(path: Path) -> list[ExternalData]:
    """The external data of every tensor of an ONNX file.

    Raises:
        BuildError: it is no ONNX file, or one that only a parser with other limits could read.
    """
    if path.suffix != ENDING:
        raise BuildError(f"a graph's name ends with {ENDING}", where=path)
    with open_regular(path) as stream:
        data = _Bytes(stream.fileno())
        if not data.size:
            raise BuildError("is empty, no ONNX graph", where=path)
        try:
            return list(_tensors(data, path))
        except _Malformed as error:
            raise BuildError(f"is no ONNX graph that can be checked ({error})", where=path) from None


def check_external_data(folder: Path, graph: str, sizes: Mapping[str, int]) -> set[str]:
    """The files besides itself that a graph of a build reads, all of them named and large enough.

    Args:
        folder: the build.
        graph: the graph's name in it.
        sizes: bytes of every file that the manifest names.

    Raises:
        BuildError: external data that is not one of these files, or outside of its file.
    """
    used = set()
    for entry in external_data(folder / graph):
        name = posixpath.join(posixpath.dirname(graph), entry.location)
        if not safe_name(entry.location) or name not in sizes or name == graph:
            raise BuildError(
                f"takes weights from {ascii(entry.location)[:120]}, which is no file of this build",
                where=folder / graph,
            )
        if entry.offset + entry.length > sizes[name]:
            raise BuildError(
                f"takes weights from beyond the end of '{name}' "
                f"({entry.offset:,} + {entry.length:,} of {sizes[name]:,} bytes)",
                where=folder / graph,
            )
        used.add(name)
    return used


class _Malformed(Exception):
    """The bytes are no protobuf message as ONNX has them."""


class _Bytes:
    """A file's bytes, page by page. Not mapped: who cuts a mapped file short ends its reader's process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._start, self._page = 0, b""

    def __getitem__(self, place: int) -> int:
        at = place - self._start
        if 0 <= at < len(self._page):
            return self._page[at]
        self._start, self._page = place, os.pread(self._descriptor, _PAGE, place)
        if not self._page:
            raise _Malformed("it was cut off while it was read")
        return self._page[0]

    def text(self, start: int, end: int) -> bytes:
        if end - start > _TEXT:
            raise _Malformed(f"a name of {end - start:,} bytes")
        found = os.pread(self._descriptor, end - start, start)
        if len(found) != end - start:
            raise _Malformed("it was cut off while it was read")
        return found


def _tensors(data: _Bytes, path: Path) -> Iterator[ExternalData]:
    pending = [("model", 0, data.size, 0)]
    fields = 0
    while pending:
        kind, start, end, depth = pending.pop()
        children = _CHILDREN[kind]
        entries: list[tuple[int, int]] = []
        external = False
        for number, first, last, varint in _records(data, start, end):
            fields += 1
            if fields > MAX_FIELDS:
                raise _Malformed(f"more than {MAX_FIELDS:,} fields")
            if varint is not None:
                external = external or (kind == "tensor" and number == _LOCATION_FIELD and varint != 0)
                continue
            if kind == "node" and number == _OP_TYPE and data.text(first, last) in _OPAQUE:
                raise BuildError("holds a compiled engine (EPContext), which nobody can check", where=path)
            child = children.get(number)
            if child == "entry":
                entries.append((first, last))
            elif child is not None:
                if depth >= MAX_DEPTH:
                    raise _Malformed(f"messages more than {MAX_DEPTH} deep")
                pending.append((child, first, last, depth + 1))
        if entries:
            yield _external(data, entries)
        elif external:
            raise _Malformed("a tensor whose values lie nowhere")


def _external(data: _Bytes, entries: list[tuple[int, int]]) -> ExternalData:
    found: dict[str, str] = {}
    for start, end in entries:
        pair: dict[int, str] = {_KEY: "", _VALUE: ""}
        seen = set()
        for number, first, last, varint in _records(data, start, end):
            if number not in pair or varint is not None or number in seen:
                raise _Malformed("an entry of external data that is no pair of texts")
            seen.add(number)
            try:
                pair[number] = data.text(first, last).decode("utf-8")
            except UnicodeDecodeError:
                raise _Malformed("external data whose name is not UTF-8") from None
        if pair[_KEY] in found or pair[_KEY] not in _KNOWN:
            raise _Malformed(f"external data with {ascii(pair[_KEY])[:60]}")
        found[pair[_KEY]] = pair[_VALUE]
    numbers = {key: found.get(key, default) for key, default in (("offset", "0"), ("length", ""))}
    if "location" not in found or not all(_DECIMAL.fullmatch(text) for text in numbers.values()):
        raise _Malformed("external data without location, offset and length")
    return ExternalData(
        location=found["location"], offset=int(numbers["offset"]), length=int(numbers["length"])
    )


def _records(data: _Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int | None]]:
    """Field number, first and last byte of its content, and its value where it is a varint."""
    place = start
    while place < end:
        tag, place = _varint(data, place, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _Malformed(f"field number {number}")
        value = None
        first = place
        if wire == 0:
            value, place = _varint(data, place, end)
        elif wire == 2:
            length, first = _varint(data, place, end)
            place = first + length
        elif wire in (1, 5):
            place += 8 if wire == 1 else 4
        else:
            raise _Malformed(f"wire type {wire}")
        if place > end:
            raise _Malformed("a field that ends behind its message")
        # Fixed numbers stand where no message can; a parser skips them as unknown, and so do we.
        if wire in (1, 5):
            continue
        yield number, first, place, value


def _varint(data: _Bytes, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise _Malformed("it is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise _Malformed("a number of more than ten bytes")
