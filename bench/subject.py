"""What is scored, behind one protocol; read bench/subjects for each kind.

SubjectSpec -> open_subject -> Subject.answer(queries) -> answers

a folder with config.json      a transformers checkpoint; several processes take turns, a GPU each
a build's folder               the torch-free runtime here, or on a device that ssh reaches
http(s)://...                  any OpenAI-compatible endpoint
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.subjects.settings import MAX_NEW_TOKENS, fingerprint_of
from bench.types import Remote, Subject, SubjectSpec
from genrecal.core import manifest
from genrecal.core.errors import BenchError, ConfigError, DeviceError, ModelError
from genrecal.core.files import read_json

__all__ = ["MAX_NEW_TOKENS", "fingerprint_of", "open_subject", "spec_from_json", "spec_of", "spec_to_json"]

DEVICES = ("cpu", "cuda", "jetson")


def open_subject(spec: SubjectSpec) -> Subject:
    """Open what a spec names: an endpoint, a build by its manifest, else a checkpoint by its config.

    Raises:
        ModelError: it is none of them, or an option does not go with it.
        DeviceError: this machine has no such device.
        BuildError: the build is incomplete or altered.
    """
    if spec.device not in DEVICES:
        raise DeviceError(
            f"unknown device '{spec.device}'", where="--device", fix=f"Name one of {', '.join(DEVICES)}"
        )
    kind = _kind(spec)
    _check_options(spec, kind)
    if kind == "endpoint":
        from bench.subjects.endpoint import EndpointSubject

        return EndpointSubject(spec)
    if kind == "build":
        if spec.remote is not None:
            from bench.subjects.device import DeviceSubject

            return DeviceSubject(spec)
        from bench.subjects.build import BuildSubject

        return BuildSubject(spec)
    if spec.processes > 1:
        from bench.subjects.processes import ProcessesSubject

        return ProcessesSubject(spec)
    from bench.subjects.checkpoint import CheckpointSubject

    return CheckpointSubject(spec)


def spec_of(subject: str | Path, **more: Any) -> SubjectSpec:
    """A spec from what a command line names: an address or a folder; `more`: its other fields."""
    text = str(subject)
    if text.startswith(("http://", "https://")):
        return SubjectSpec(url=text.rstrip("/"), name=f"{more.get('model') or 'model'} at {text}", **more)
    path = Path(subject)
    name = f"{path.resolve().parent.name}/{path.resolve().name}"
    adapter, remote = more.get("adapter"), more.get("remote")
    name += f" + {adapter.resolve().name}" if adapter is not None else ""
    name += f" on {remote.host}" if remote is not None else ""
    return SubjectSpec(path=path, name=name, **more)


def remote_of(host: str, ssh: str, command: str) -> Remote:
    """A device from what a command line says of it.

    Raises:
        ConfigError: the host would be read as an option of ssh, or the ssh command is empty.
    """
    words = tuple(shlex.split(ssh))
    if not words:
        raise ConfigError("is empty", where="--ssh")
    if not host or host.startswith("-") or any(letter.isspace() for letter in host):
        raise ConfigError(f"{host!r} is no host", where="--host", fix="Name USER@HOST")
    return Remote(host=host, ssh=words, command=command)


def default_output(spec: SubjectSpec) -> Path:
    """Beside the subject; an endpoint's in this folder."""
    if spec.path is None:
        return Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', spec.model or 'model')}-bench")
    return spec.path.parent / f"{spec.path.name}-bench"


def spec_to_json(spec: SubjectSpec) -> dict[str, Any]:
    content = asdict(spec)
    for name in ("path", "adapter"):
        content[name] = str(content[name]) if content[name] is not None else None
    content["trusted_keys"] = list(spec.trusted_keys)
    if spec.remote is not None:
        content["remote"]["ssh"] = list(spec.remote.ssh)
    return content


def spec_from_json(content: Mapping[str, Any]) -> SubjectSpec:
    given = {**content, "trusted_keys": tuple(content["trusted_keys"])}
    for name in ("path", "adapter"):
        given[name] = Path(given[name]) if given.get(name) is not None else None
    if remote := given.get("remote"):
        given["remote"] = Remote(**{**remote, "ssh": tuple(remote["ssh"])})
    return SubjectSpec(**given)


def _kind(spec: SubjectSpec) -> str:
    if spec.url is not None:
        return "endpoint"
    if spec.path is None or not spec.path.is_dir():
        raise ModelError("no such folder", where=spec.path, fix="Name a checkpoint, a build or an address")
    kind = _manifest_kind(spec.path)
    if kind == "build":
        return kind
    if not (spec.path / "config.json").is_file():
        what = f"is a folder of kind '{kind}'" if kind else "has neither a build's manifest nor a config.json"
        raise ModelError(what, where=spec.path, fix="Name a checkpoint (a run's student/) or a build")
    return "checkpoint"


def _check_options(spec: SubjectSpec, kind: str) -> None:
    """Options that would be passed over in silence are refused."""
    for given, needs, option in (
        (spec.adapter is not None, "checkpoint", "--adapter"),
        (spec.processes > 1, "checkpoint", "--processes"),
        (spec.remote is not None, "build", "--host"),
        (spec.model is not None, "endpoint", "--model"),
    ):
        if given and kind != needs:
            raise ModelError(f"{option} goes with a subject of kind {needs}, not {kind}", where=spec.name)
    if kind == "endpoint" and spec.model is None:
        raise ModelError("the endpoint's model is not named", where=spec.url, fix="Give --model NAME")


def _manifest_kind(folder: Path) -> str | None:
    path = folder / manifest.NAME
    if not path.is_file():
        return None
    content = read_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise BenchError("its manifest names no kind", where=folder)
    return kind
