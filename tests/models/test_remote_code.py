"""A checkpoint's own code runs only where it is allowed and is the code that was allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from genrecal.core.config import parse_config
from genrecal.core.errors import ConfigError, ModelError
from genrecal.models.processors import load_model
from genrecal.models.remote_code import RemoteCode, check_remote_code, code_digest, code_files

CODE = """
from transformers import PretrainedConfig
from .constants import WIDTH

open({trace!r}, "w").write("ran")

class OwnConfig(PretrainedConfig):
    model_type = "genrecal_test_own"
    width = WIDTH
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose config class is its own; its code leaves a trace when it runs."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "configuration_own.py").write_text(CODE.format(trace=str(tmp_path / "trace")))
    (folder / "constants.py").write_text("WIDTH = 7\n")
    config = {"model_type": "genrecal_test_own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def allowed(folder: Path) -> RemoteCode:
    return RemoteCode(allow=True, revision=code_digest(code_files(folder)))


def test_off_by_default(folder: Path) -> None:
    checked = check_remote_code(folder, RemoteCode())
    assert checked.options == {"trust_remote_code": False}
    assert checked.record == {"remote_code": False}
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(folder, **checked.options)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)
    assert not (folder.parent / "trace").exists()


def test_pinned_code_runs_and_is_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "modules"))
    monkeypatch.syspath_prepend(str(folder.parent / "modules"))
    checked = check_remote_code(folder, allowed(folder))
    assert AutoConfig.from_pretrained(folder, **checked.options).width == 7
    assert (folder.parent / "trace").read_text() == "ran"
    assert checked.record == {
        "remote_code": True,
        "folder": "own",
        "revision": code_digest(code_files(folder)),
        "files": code_files(folder),
    }
    assert set(checked.record["files"]) == {"configuration_own.py", "constants.py"}


def test_the_digest_is_what_sha256sum_gives(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "more.py").write_text("")
    listing = "find . -name '*.py' | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["bash", "-c", listing], cwd=folder, capture_output=True, text=True, check=True)
    assert code_digest(code_files(folder)) == done.stdout.split()[0]


@pytest.mark.parametrize("change", ["edit", "add", "rename", "remove"])
def test_changed_code_is_refused(folder: Path, change: str) -> None:
    settings = allowed(folder)
    constants = folder / "constants.py"
    if change == "edit":
        constants.write_text("WIDTH = 8\n")
    elif change == "add":
        (folder / "new.py").write_text("")
    elif change == "rename":
        constants.rename(folder / "consts.py")
    else:
        constants.unlink()
    with pytest.raises(ModelError, match=f"its code has the SHA-256 .*, allowed is {settings.revision}"):
        check_remote_code(folder, settings)


def test_a_folder_without_code(folder: Path) -> None:
    settings = allowed(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    with pytest.raises(ModelError, match="brings no code"):
        check_remote_code(folder, settings)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_refused(folder: Path, file: str) -> None:
    auto_map = {"AutoTokenizer": [None, "other/name--tokenization.Own"]}
    (folder / file).write_text(json.dumps({"llm_config": {"auto_map": auto_map}}))
    with pytest.raises(ModelError, match=r"takes code from elsewhere: 'other/name--tokenization\.Own'"):
        check_remote_code(folder, allowed(folder))


def test_a_branch_or_commit_pins_nothing(folder: Path) -> None:
    for moving in ("main", COMMIT):
        with pytest.raises(ConfigError, match="is no SHA-256"):
            check_remote_code(folder, RemoteCode(allow=True, revision=moving))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"allow": True}, "allow needs a revision"),
        ({"revision": COMMIT}, "a revision is given, but allow is off"),
        ({"alow": True, "revision": COMMIT}, "Did you mean 'allow'"),
    ],
)
def test_settings_that_say_half(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(content, RemoteCode, where="run.yaml")


def test_nothing_of_it_is_loaded_at_import() -> None:
    program = "import genrecal.models.remote_code, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
