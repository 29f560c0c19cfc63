"""`python -m tests.train.zygote`: a rank for every line of stdin, without importing torch again.

A line is a JSON object, answered by others:

    {"config": YAML, "log": FILE, "at": {…}}     run it as one rank, in a fork -> {"pid": N}, then {"code": N}
    {"shell": COMMAND}                           -> {"code": N, "printed": TEXT}

`at` says what happens at one of the rank's own file operations, just before it; operations are Python's audit
events with their path, as "os.rename /runs/a/.config.yaml.x"; how many there were stands in LOG.operations.

    match    regular expression that it matches
    count    the how manieth match, from 1
    size     matches count once the file has so many bytes
    action   "kill": SIGKILL to itself; "fill": write the file `filler` until the disk is full but for `leave`
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# What changes files, and the argument that names which.
OPERATIONS = {
    "open": 0,
    "os.rename": 0,
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.chmod": 0,
    "os.link": 1,
    "shutil.rmtree": 0,
}


def operation(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The operation behind an audit event; None: it changes no file."""
    if event not in OPERATIONS or not isinstance(arguments[OPERATIONS[event]], str | os.PathLike):
        return None
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return None
    return f"{event} {os.fspath(arguments[OPERATIONS[event]])}"


def watch(folder: Path, log: Path, at: dict[str, Any]) -> None:
    """Count this process's file operations below `folder` from now on; do at one of them what `at` says."""
    pattern, left = re.compile(at.get("match", "")), [at.get("count", 1)]
    counter = os.open(f"{log}.operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    total = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        what = operation(event, arguments)
        if what is None or str(folder) not in what or (left[0] == 0 and at):
            return
        total[0] += 1
        os.pwrite(counter, f"{total[0]}\n".encode(), 0)
        path = what.partition(" ")[2]
        if not at or not pattern.search(what):
            return
        if at.get("size", 0) and (not os.path.isfile(path) or os.path.getsize(path) < at["size"]):
            return
        left[0] -= 1
        if left[0]:
            return
        if at["action"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            fill(at["filler"], at.get("leave", 0))

    sys.addaudithook(hook)


def fill(filler: str, leave: int) -> None:
    """Write until the disk is full, then give back `leave` bytes."""
    with open(filler, "wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 4096):
                pass
        except OSError:
            pass
        stream.truncate(max(0, stream.tell() - leave))


def as_rank(request: dict[str, Any]) -> int:
    """Run the config as the one rank of a launcher; returns the exit code."""
    from genrecal.core.config import load_config
    from genrecal.core.errors import GenrecalError
    from genrecal.train.launch import distill
    from genrecal.train.settings import RunConfig

    log = Path(request["log"])
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    config = load_config(Path(request["config"]), RunConfig)
    watch(config.output, log, request.get("at") or {})
    try:
        distill(config)
    except GenrecalError as error:
        if not error.reported:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def main() -> None:
    import deepspeed  # noqa: F401

    import genrecal.train.launch  # noqa: F401

    def answer(**values: Any) -> None:
        print(json.dumps(values), flush=True)

    answer(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "shell" in request:
            done = subprocess.run(request["shell"], shell=True, capture_output=True, text=True, check=False)
            answer(code=done.returncode, printed=done.stdout + done.stderr)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = as_rank(request)
            finally:
                sys.stdout.flush()
                os._exit(code)
        answer(pid=pid)
        answer(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
