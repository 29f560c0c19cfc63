"""Configs: unknown keys with a suggestion, wrong types, `--set`, and the resolved YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from genrecal.core.config import Config, dump_config, load_config, parse_config
from genrecal.core.errors import ConfigError


class Inner(Config):
    rank: int = 64
    dropout: float = 0.05


class Outer(Config):
    name: str
    inner: Inner = Inner()
    stages: dict[str, Inner] = Field(default={})
    names: tuple[str, ...] = ()
    folder: Path | None = None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text("name: one\ninner: {rank: 8}\nstages: {first: {dropout: 0.0}}\n")
    return file


def fails(path: Path, text: str | None, *overrides: str) -> str:
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Outer, overrides)
    line = str(caught.value)
    assert "\n" not in line and caught.value.exit_code == 2
    return line


def test_what_is_read(path: Path) -> None:
    config = load_config(path, Outer)
    assert config == Outer(name="one", inner=Inner(rank=8), stages={"first": Inner(dropout=0.0)})
    with pytest.raises(ValueError):
        config.name = "two"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("nmae: one", "nmae", "name"),
        ("name: one\ninner: {rnak: 8}", "inner.rnak", "rank"),
        ("name: one\nstages: {first: {dropuot: 0.1}}", "stages.first.dropuot", "dropout"),
    ],
)
def test_unknown_key_names_the_nearest(path: Path, text: str, key: str, near: str) -> None:
    if "name:" not in text:
        text += "\nname: one"
    assert fails(path, text) == f"{path}: unknown key '{key}'. Did you mean '{near}'?"


def test_unknown_key_without_a_near_one(path: Path) -> None:
    assert fails(path, "name: one\nzzzzzz: 1") == f"{path}: unknown key 'zzzzzz'"


def test_wrong_values_name_their_key(path: Path) -> None:
    assert fails(path, "name: one\ninner: {rank: many}").startswith(f"{path}: 'inner.rank': ")
    assert fails(path, "inner: {rank: 1}").startswith(f"{path}: 'name': Field required")
    assert fails(path, "name: [1]").startswith(f"{path}: 'name': ")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no mapping"), ("- 1\n- 2", "holds no mapping"), ("name: [", "is not valid YAML")],
)
def test_a_file_that_is_no_mapping(path: Path, text: str, message: str) -> None:
    assert message in fails(path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert fails(tmp_path / "nowhere.yaml", None) == f"{tmp_path / 'nowhere.yaml'}: no such config file"
    assert "is a folder" in fails(tmp_path, None)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "is not valid YAML" in fails(tmp_path / "binary.yaml", None)


def test_a_file_that_extends_another(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text(
        "name: base\ninner: {rank: 8, dropout: 0.5}\nstages: {first: {rank: 1}}\n"
        "names: [a, b]\nfolder: models\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nname: middle\nnames: [c]\n")
    path = tmp_path / "deep" / "run.yaml"
    path.write_text("extends: ../middle.yaml\ninner: {rank: 2}\nstages: {second: {rank: 3}}\n")
    config = load_config(path, Outer, ["inner.dropout=0.1"])
    assert config == Outer(
        name="middle",
        inner=Inner(rank=2, dropout=0.1),
        stages={"first": Inner(rank=1), "second": Inner(rank=3)},
        names=("c",),
        folder=Path("models"),  # as it stands in the file, not beside it
    )
    path.write_text("extends: ../base.yaml\nstages: null\ninner: {rank: 1}\n")
    assert fails(path, None).startswith(f"{path}: 'stages': ")


def test_files_that_cannot_be_extended(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("extends: second.yaml\nname: one\n")
    second.write_text("extends: ./first.yaml\n")
    chain = " -> ".join(str(file.resolve()) for file in (first, second, first))
    assert fails(first, None) == f"{first.resolve()}: extends itself: {chain}"
    assert "extends itself" in fails(first, "extends: first.yaml\nname: one")
    gone = fails(first, "extends: gone.yaml\nname: one")
    assert gone == f"{tmp_path / 'gone.yaml'}: no such config file"
    assert "'extends' is not the path of one file" in fails(first, "extends: [second.yaml]")
    second.write_text("- 1")
    assert fails(first, "extends: second.yaml") == f"{second}: holds no mapping of keys to values"
    assert "unknown key 'extends'" in fails(first, "name: one", "extends=second.yaml")


def test_set_overrides(path: Path) -> None:
    config = load_config(
        path, Outer, ["inner.rank=4", "stages.second.rank=2", "names=[a, b]", "folder=null", "name=x=y"]
    )
    assert config.inner.rank == 4 and config.names == ("a", "b") and config.folder is None
    assert config.stages == {"first": Inner(dropout=0.0), "second": Inner(rank=2)}
    assert config.name == "x=y"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.rank", "--set: 'inner.rank' is not of the form a.b=value"),
        ("=3", "--set: '=3' is not of the form a.b=value"),
        ("name.x=3", "--set: 'name' in 'name.x' holds a value, not keys"),
        ("inner.rank=[", "--set: the value of 'inner.rank=[' is not valid YAML"),
        ("inner.rnak=3", "unknown key 'inner.rnak'. Did you mean 'rank'?"),
        ("inner.rank=many", "'inner.rank': "),
    ],
)
def test_bad_overrides(path: Path, override: str, message: str) -> None:
    assert message in fails(path, None, override)


def test_the_resolved_config_reads_back(path: Path, tmp_path: Path) -> None:
    config = load_config(path, Outer, ["folder=/some/where"])
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml", Outer) == config
    assert parse_config(config.model_dump(mode="json"), Outer, where="x") == config


def test_what_a_validator_says_stands_alone(tmp_path: Path) -> None:
    from genrecal.train.settings import RunConfig

    content = {"method": "sftt", "student": "s", "output": "o", "data": {"sources": [{"path": "d.json"}]}}
    with pytest.raises(ConfigError, match=r"^run\.yaml: unknown method 'sftt'; known are genrecal"):
        parse_config(content, RunConfig, where="run.yaml")
