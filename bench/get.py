"""`genrecal data get NAME`: a benchmark's files from where their owners publish them.

hub: a data set at one revision, only the files that are read      else: URLs, archives left packed
FOLDER/source.json: repository, the commit that was read, licence, SHA-256 of every file
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from bench.task import Source
from bench.tasks import task_named
from genrecal.core.console import console
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_file, write_json

RECORD = "source.json"
TIMEOUT_S = 60.0


def get_command(name: str, output: Path, *, revision: str | None = None) -> Path:
    """Fetch a benchmark's files into `output`, show their licence, and write down what they are.

    Args:
        name: the benchmark's name in bench/tasks.py.
        output: the folder; files that are there are not fetched again.
        revision: a commit or branch of the hub's repository; None: the pinned commit, or where none is pinned
            the newest. The commit that was read is recorded.

    Raises:
        BenchError: no such benchmark, or its place cannot be reached.
    """
    task = task_named(name)
    console.print(f"{task.title}: {task.source.files}; licence: {task.source.licence}", markup=False)
    output.mkdir(parents=True, exist_ok=True)
    commit = fetch(task.source, output, revision=revision)
    files = {
        path.relative_to(output).as_posix(): sha256_file(path)
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != RECORD and ".cache" not in path.parts
    }
    record = output / RECORD
    write_json(
        record,
        {
            "benchmark": name,
            "version": task.version,
            "licence": task.source.licence,
            "repository": task.source.repository,
            "commit": commit,
            "urls": list(task.source.urls),
            "files": files,
        },
    )
    console.print(f"{len(files)} files in {output}", markup=False)
    return record


def fetch(source: Source, output: Path, *, revision: str | None = None) -> str | None:
    """Fetch by the hub's client or by URL.

    Returns: the commit of the hub's repository.

    Raises:
        BenchError: the place cannot be reached, has nothing there, or has another file than was pinned.
    """
    if source.repository is None:
        for url in source.urls:
            target = output / url.rsplit("/", 1)[-1]
            _download(url, target)
            _require_md5(target, source.md5.get(target.name))
        return None
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    def asked(call: Callable[[], str | None]) -> str | None:
        try:
            return call()
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
            raise BenchError(
                f"the hub gives nothing ({' '.join(str(error).split())[:200]})",
                where=f"data set {source.repository}",
                fix="Fetch the files where the hub can be reached, and name their folder",
            ) from None

    commit = asked(
        lambda: HfApi().dataset_info(str(source.repository), revision=revision or source.revision).sha
    )
    asked(
        lambda: snapshot_download(
            str(source.repository),
            repo_type="dataset",
            revision=commit,
            local_dir=output,
            allow_patterns=list(source.patterns) or None,
        )
    )
    return commit


def _require_md5(file: Path, wanted: str | None) -> None:
    """Compare a file with the MD5 that its owners publish: it tells versions apart, and is no protection."""
    if wanted is None:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != wanted:
        raise BenchError(
            f"is another file than VLMEvalKit names (MD5 {found}, not {wanted})",
            where=file,
            fix="Its owners may have changed it: bench it by its name, and say so with the score",
        )


def _download(url: str, target: Path) -> None:
    """To a name beside, then renamed: what was cut off is not taken for the file."""
    if target.is_file():
        return
    part = target.with_name(f".{target.name}.part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, part.open("wb") as stream:
            shutil.copyfileobj(reply, stream)
            length = reply.headers.get("Content-Length")
            if length is not None and stream.tell() != int(length):
                raise OSError(f"{stream.tell()} of {length} bytes came")
    except (urllib.error.URLError, OSError) as error:
        part.unlink(missing_ok=True)
        raise BenchError(
            f"cannot be fetched ({' '.join(str(error).split())[:200]})",
            where=url,
            fix="Fetch it by other means and name the file",
        ) from None
    part.replace(target)
