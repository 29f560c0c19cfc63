"""A build on a device that ssh reaches: copied, checked there, asked there; needs no torch on the device.

    build --- tar, missing files only ---> FOLDER/<SHA-256 of its manifest>/
    ssh HOST genrecal answer FOLDER/... --manifest-sha256 ...      checks every file, then loads the graphs
    queries --- lines of JSON ---> device --- lines of JSON ---> answers, timed there

A connection that breaks is made again and asked what is not answered yet. Answers are kept here, in the run's
journal, so a run that was killed goes on at the next question.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import IO, Any

from PIL import Image

from bench.subjects.settings import fingerprint_of, folder_of, overrides_of, seed_of
from bench.types import Answer, Facts, Query, Remote, SubjectSpec
from edge.build import open_build
from edge.watching import Watched, from_json
from genrecal.core.errors import BenchError, DeviceError
from genrecal.core.files import sha256_file
from genrecal.core.manifest import NAME

# Nobody is there to type a password; a dead link is noticed within a minute.
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
SSH_FAILED = 255  # what ssh itself ends with; other codes are the remote command's
RECONNECTS = 5
FIRST_WAIT_S = 1.0  # before the first; then twice as long each time
AHEAD = 8  # questions sent before the first of them is answered: the link works while the device does


class DeviceSubject:
    """One build on one device."""

    chunk, lanes = AHEAD, 1

    def __init__(self, spec: SubjectSpec) -> None:
        assert spec.remote is not None
        self.spec, self._remote, self._folder = spec, spec.remote, folder_of(spec)
        build = open_build(
            self._folder,
            manifest_sha256=spec.manifest_sha256,
            trusted_keys=[Path(key) for key in spec.trusted_keys],
        )
        self._manifest_sha256 = sha256_file(self._folder / NAME)
        self._target = f"{self._remote.folder}/{self._manifest_sha256}"
        files = build.manifest["files"]
        self.copied = self._copy(files)
        generation = dict(build.generation_config)
        generation.pop("transformers_version", None)
        self._overrides = overrides_of(spec, generation.get("max_new_tokens"))
        generation |= self._overrides
        self.peak_memory_bytes: int | None = None  # of the process there, with the last answer
        self._fresh = False
        self._process: subprocess.Popen[bytes] | None = None
        ready = self._connect()
        self.facts = Facts(
            kind="build",
            weights_bytes=sum(entry["bytes"] for name, entry in files.items() if name.startswith("onnx/")),
            precision=build.precision,
            device=spec.device,
            generation=generation,
            about={
                "host": self._remote.host,
                "board": ready["board"],
                "versions": ready["versions"],
                "manifest_sha256": self._manifest_sha256,
            },
        )
        self.fingerprint = fingerprint_of(spec, files, generation)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers in their order.

        Raises:
            DeviceError: the device cannot be reached any more.
            BenchError: it cannot answer a question.
        """
        found: dict[str, Answer] = {}
        for attempt in range(RECONNECTS + 1):
            left = [query for query in queries if query.id not in found]
            try:
                self._ask(left, found)
                return [found[query.id] for query in queries]
            except _Broken:
                self._reconnect(attempt)
        raise AssertionError("_reconnect ends the last attempt with an error")

    def forget(self) -> None:
        """The device forgets before the next answers."""
        self._fresh = True

    def begin_watch(self) -> None:
        """Let the device measure from now on what its board takes; with `Remote.watch`."""
        self._watch("begin")

    def end_watch(self) -> tuple[Watched, Watched]:
        """What it measured: from before the build was opened, and since `begin_watch`.

        A connection that was made again in between leaves nothing of the latter.
        """
        found = self._watch("end") or {}
        return from_json(found.get("whole")), from_json(found.get("work"))

    def _watch(self, what: str) -> Mapping[str, Any] | None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        _send(process.stdin, [json.dumps({"id": what, "watch": what}).encode() + b"\n"])
        try:
            content = _parse(process.stdout.readline())
        except _Broken:
            raise self._failure() from None
        return content.get("watched")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(self, queries: Sequence[Query], found: dict[str, Answer]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise _Broken
        lines = [self._line(query) for query in queries]
        # Written beside the reading: with both ends of a full pipe waiting, nobody would ever go on.
        writer = Thread(target=_send, args=(process.stdin, lines), daemon=True)
        writer.start()
        for query in queries:
            content = _parse(process.stdout.readline())
            if content.get("id") != query.id:
                raise BenchError(
                    f"answered '{content.get('id')}' where '{query.id}' was asked", where=self._remote.host
                )
            if "error" in content:
                raise BenchError(f"question '{query.id}': {content['error']}", where=self._remote.host)
            self.peak_memory_bytes = content["peak_memory_bytes"]
            found[query.id] = Answer(**{field.name: content[field.name] for field in fields(Answer)})
        writer.join()
        self._fresh = False

    def _line(self, query: Query) -> bytes:
        content = {
            "id": query.id,
            "parts": [_part(part) for part in query.parts],
            "seed": seed_of(self.spec.seed, [query]),
            "overrides": self._overrides,
            "fresh": self._fresh,
        }
        return json.dumps(content).encode() + b"\n"

    def _connect(self) -> Mapping[str, Any]:
        """Start the command there; gives what it says of itself.

        Raises:
            DeviceError: it ends at once; its last line says why.
        """
        words = [
            *shlex.split(self._remote.command),
            "answer",
            self._target,
            "--device",
            self.spec.device,
            "--manifest-sha256",
            self._manifest_sha256,
            *(["--threads", str(self.spec.threads)] if self.spec.threads is not None else []),
            *(["--watch"] if self._remote.watch else []),
        ]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            self._ssh(shlex.join(words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdout is not None
        try:
            return _parse(self._process.stdout.readline())
        except _Broken:
            raise self._failure() from None

    def _reconnect(self, attempt: int) -> None:
        failure = self._failure()
        if failure.passing and attempt < RECONNECTS:
            time.sleep(FIRST_WAIT_S * 2**attempt)
            try:
                self._connect()
            except _DeviceFailed as error:
                if not error.passing:
                    raise
            return
        raise failure

    def _failure(self) -> _DeviceFailed:
        """Why the process there has ended."""
        code = None
        if self._process is not None:
            with suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            try:
                code = self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            self._process = None
        self._errors.seek(0)
        return _failed(self._remote, code, self._errors.read())

    def _copy(self, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Send what the device lacks, the manifest last; gives the names."""
        digests = {name: entry["sha256"] for name, entry in files.items()} | {NAME: self._manifest_sha256}
        target = shlex.quote(self._target)
        names = " ".join(shlex.quote(name) for name in digests)
        listing = self._run(
            f"mkdir -p {target} && cd {target} && {{ sha256sum -- {names} 2>/dev/null || :; }}"
        )
        there = dict(
            (name, digest)
            for digest, _, name in (line.partition("  ") for line in listing.decode().splitlines())
        )
        missing = [name for name, digest in digests.items() if there.get(name) != digest]
        if missing:
            self._run(f"tar -xf - -C {target}", send=missing)
        return missing

    def _run(self, script: str, *, send: Sequence[str] = ()) -> bytes:
        """Run a shell line there; `send`: files of the build, as a tar on its standard input."""
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
            process = subprocess.Popen(self._ssh(script), stdin=subprocess.PIPE, stdout=output, stderr=errors)
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                if send:
                    with tarfile.open(fileobj=process.stdin, mode="w|") as tar:
                        for name in send:
                            tar.add(self._folder / name, arcname=name)
                process.stdin.close()
            code = process.wait()
            errors.seek(0)
            if code:
                raise _failed(self._remote, code, errors.read())
            output.seek(0)
            return output.read()

    def _ssh(self, script: str) -> list[str]:
        return [*self._remote.ssh, *SSH_OPTIONS, self._remote.host, script]


class _Broken(Exception):
    """The connection ended before an answer came."""


class _DeviceFailed(DeviceError):
    """`passing`: ssh failed, not the command there."""

    passing = False


def _failed(remote: Remote, code: int | None, errors: bytes) -> _DeviceFailed:
    lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
    passing = code is None or code == SSH_FAILED or code < 0  # below 0: ssh itself was killed
    fix = "Is the device reachable without a password?" if passing else "See docs/subjects.md"
    error = _DeviceFailed(lines[-1][:300].removeprefix("error: ").rstrip("."), where=remote.host, fix=fix)
    error.passing = passing
    return error


def _send(stream: IO[bytes], lines: Sequence[bytes]) -> None:
    with suppress(BrokenPipeError, ValueError):  # a connection that ended; the reader says so
        for line in lines:
            stream.write(line)
            stream.flush()


def _parse(line: bytes) -> dict[str, Any]:
    """A line from the device; one that is cut short or none at all is a broken connection."""
    if not line.endswith(b"\n"):
        raise _Broken
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BenchError(f"said {line[:80]!r}", where="the device", fix="Is genrecal there the same version?")
    return content


def _part(part: str | Image.Image) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    stream = io.BytesIO()
    part.save(stream, format="PNG", compress_level=1)
    return {"image": base64.b64encode(stream.getvalue()).decode()}
