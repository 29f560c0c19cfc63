"""`genrecal answer`: lines of JSON in, lines of JSON out, for a program that asks a build, also over ssh.

    {"id": "7", "parts": [{"image": BASE64}, {"text": "What is it?"}], "seed": 1, "overrides": {}}
    -> {"id": "7", "text": "A dog.", "tokens": 4, "prompt_tokens": 80, "first_token_s": 0.4, "total_s": 0.6,
        "peak_memory_bytes": 1500000000}
    -> {"id": "8", "error": "..."}          a question that cannot be answered; the next one may be

With `--watch` what the board takes is measured, too, between two lines that ask for it (edge/watching.py).

With `"fresh": true` nothing that is kept of earlier questions is used. The first line out says what answers.
Questions may be sent ahead; they are answered in their order.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from edge.device import jetson_board
from edge.generate import Answer
from edge.memory import peak_memory_bytes
from edge.model import EdgeModel
from edge.prompt import Part
from edge.watching import Watching
from genrecal.core.errors import DataError, GenrecalError
from genrecal.core.images import open_image
from genrecal.core.manifest import installed_versions

PROTOCOL = 1
ROOT = Path("/")  # of the file system that shows the board
MAX_LINE_BYTES = 256 * 2**20


def answer(open_model: Callable[[], EdgeModel], *, device: str, watch: bool = False) -> None:
    """Answer the questions of standard input until it ends.

    Args:
        open_model: opens the build.
        device: its name, for the first line.
        watch: measure what the board takes, from before the build is opened.

    Raises:
        DataError: a line is no question.
        BuildError: the build cannot be used.
        DeviceError: this machine is no such device.
    """
    with _own_output() as output:
        watching = Watching(ROOT) if watch else None
        model = open_model()
        manifest = model.build.manifest
        ready = {
            "ready": PROTOCOL,
            "device": device,
            "board": jetson_board(),
            "versions": installed_versions(),
            "precision": manifest["precision"],
            "graphs": manifest["graphs"],
        }
        _write(output, ready)
        for number, line in enumerate(_lines(sys.stdin.buffer), start=1):
            question = _read(line, number)
            found = _watched(watching, question) if "watch" in question else _answered(model, question)
            _write(output, {"id": question["id"], **found})


def _watched(watching: Watching | None, question: dict[str, Any]) -> dict[str, Any]:
    if watching is None:
        raise DataError("asks what the board takes without --watch", where="standard input")
    if question["watch"] == "begin":
        watching.begin()
        return {"watched": None}
    return {"watched": watching.end()}


def _answered(model: EdgeModel, question: dict[str, Any]) -> dict[str, Any]:
    if question.get("fresh"):
        model.forget()
    started = time.perf_counter()
    try:
        parts = [_part(part) for part in question["parts"]]
        overrides = {**question.get("overrides", {}), "seed": question.get("seed")}
        found: Answer = model.answer(parts, **overrides)
    except DataError as error:
        return {"error": str(error)}
    return {
        "text": found.text.strip(),
        "tokens": len(found.token_ids),
        "prompt_tokens": found.prompt_tokens,
        "first_token_s": found.first_token_s,
        "total_s": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _part(part: Any) -> Part:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    if not isinstance(part, dict) or not isinstance(part.get("image"), str):
        raise DataError("a part is neither a text nor an image")
    try:
        data = base64.b64decode(part["image"], validate=True)
    except (binascii.Error, ValueError):
        raise DataError("an image is not valid base64") from None
    return open_image(data, name="image")


def _read(line: bytes, number: int) -> dict[str, Any]:
    try:
        question = json.loads(line)
    except (UnicodeDecodeError, ValueError, RecursionError):
        question = None
    if (
        not isinstance(question, dict)
        or not isinstance(question.get("id"), str)
        or not (question.get("watch") in ("begin", "end") or isinstance(question.get("parts"), list))
        or ("watch" in question and "parts" in question)
        or not isinstance(question.get("overrides", {}), dict)
    ):
        raise DataError(f"line {number} is no question", where="standard input")
    return question


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"a line has more than {MAX_LINE_BYTES:,} bytes", where="standard input")
        if line.strip():
            yield line


def _write(output: BinaryIO, content: dict[str, Any]) -> None:
    try:
        output.write(json.dumps(content).encode() + b"\n")
        output.flush()
    except BrokenPipeError:
        raise GenrecalError("nobody reads the answers any more", where="standard output") from None


@contextmanager
def _own_output() -> Iterator[BinaryIO]:
    """Standard output for answers alone: what libraries print goes to standard error meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "wb") as output:
            yield output
    finally:
        os.dup2(kept, 1)
        os.close(kept)
