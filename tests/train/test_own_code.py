"""A run with a student that brings code of its own: allowed by its pin, run, and written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from genrecal.core.manifest import read_manifest
from genrecal.models.remote_code import code_digest, code_files
from tests.tiny import TinyData, TinyPair
from tests.train.conftest import WriteConfig, as_one_rank, drive

CODE = """
from transformers import Qwen2TokenizerFast

open({trace!r}, "w").write("ran")

class OwnTokenizer(Qwen2TokenizerFast):
    pass
"""


def test_what_was_allowed_stands_in_the_runs_manifest(
    write_config: WriteConfig, tiny_pair: TinyPair, method_data: TinyData, tmp_path: Path
) -> None:
    student, trace = tmp_path / "own", tmp_path / "trace"
    shutil.copytree(tiny_pair.student, student)
    (student / "tokenization_own.py").write_text(CODE.format(trace=str(trace)))
    settings = json.loads((student / "tokenizer_config.json").read_text())
    names = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    (student / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": names}))
    pin = code_digest(code_files(student))
    config = write_config(
        "own-code",
        method="sft",
        data=method_data.path,
        accumulation=1,
        changes={"student": str(student), "remote_code": {str(student): {"allow": True, "revision": pin}}},
    )
    done = drive([config], as_one_rank() | {"HF_MODULES_CACHE": str(tmp_path / "modules")})
    assert done.returncode == 0, done.stderr[-3000:]
    assert trace.read_text() == "ran"
    manifest = read_manifest(config.with_suffix(""), kind="run")
    assert manifest["remote_code"] == [
        {"remote_code": True, "folder": "own", "revision": pin, "files": code_files(student)},
        {"remote_code": False},  # the teacher, which the method does not read
    ]
