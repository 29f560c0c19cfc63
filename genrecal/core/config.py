"""Configs are frozen pydantic models read from YAML, with `--set a.b=c` on top.

A file may build on another: `extends: base.yaml`, a path that starts at the file's own folder. What the file
says goes over what the other one says, key by key; lists are replaced whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from genrecal.core.errors import ConfigError


class Config(BaseModel):
    """The base of every config: unknown keys are errors, values never change, docstrings are the help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


ConfigType = TypeVar("ConfigType", bound=Config)


def load_config(path: Path, kind: type[ConfigType], overrides: Sequence[str] = ()) -> ConfigType:
    """Read `path` as a config of type `kind`, on top of the files that it extends.

    Relative paths in the files are left as they are: they are relative to the working folder.

    Args:
        path: a YAML file.
        kind: the config class.
        overrides: `a.b=value` strings; the value is read as YAML.

    Raises:
        ConfigError: no such file, no YAML, files that extend each other, an unknown key (with the nearest
            known one) or a wrong value.
    """
    content = _read(path)
    for override in overrides:
        _apply(content, override)
    return parse_config(content, kind, where=path)


def _read(path: Path, *extending: Path) -> dict[str, Any]:
    """The content of `path` over that of what it extends; `extending` are the files on the way to it."""
    if path.resolve() in extending:
        chain = " -> ".join(str(file) for file in (*extending, path.resolve()))
        raise ConfigError(f"extends itself: {chain}", where=extending[0])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such config file", where=path) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a config file", where=path) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"is not valid YAML ({' '.join(str(error).split())})", where=path) from None
    if not isinstance(content, dict):
        raise ConfigError("holds no mapping of keys to values", where=path)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError("'extends' is not the path of one file", where=path)
    return _over(_read(path.parent / base, *extending, path.resolve()), content)


def _over(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _over(base[key], value) if both else value
    return merged


def parse_config(content: dict[str, Any], kind: type[ConfigType], *, where: Path | str) -> ConfigType:
    """Validate `content` as `kind`; the first problem becomes a ConfigError of one line."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # A misspelt key also leaves the right one missing; the misspelling is what to tell.
        problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), _known_keys(kind), n=1)
            fix = f"Did you mean '{near[0]}'?" if near else None
            raise ConfigError(f"unknown key '{key}'", where=where, fix=fix) from None
        # A validator of a whole section at the top has no key; pydantic marks what validators of ours say.
        what = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"'{key}': {what}" if key else what, where=where) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML, for the run folder."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"'{override}' is not of the form a.b=value", where="--set")
    *parents, last = key.split(".")
    node = content
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"'{parent}' in '{key}' holds a value, not keys", where="--set")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"the value of '{override}' is not valid YAML", where="--set") from None


def _known_keys(kind: type[BaseModel]) -> list[str]:
    """Every key of `kind` and of the configs within it."""
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        keys.append(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys.extend(_known_keys(part))
    return keys
