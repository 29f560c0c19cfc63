"""Checkpoint and build answer alike: alone, in padded batches, with no image and with two."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.subject import MAX_NEW_TOKENS, open_subject
from bench.types import SubjectSpec
from genrecal.core.errors import BuildError, DeviceError, ModelError


def spec(path, **more):
    return SubjectSpec(**{"path": path, "name": path.name, "greedy": True, "max_new_tokens": 8, **more})


@pytest.mark.parametrize("model", ["student_folder", "teacher_folder"])
def test_a_padded_batch_answers_as_single_queries_do(model, queries, request):
    subject = open_subject(spec(request.getfixturevalue(model)))
    together = subject.answer(queries)
    alone = [subject.answer([query])[0] for query in queries]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.tokens, one.prompt_tokens) == (other.text, other.tokens, other.prompt_tokens)
        assert one.first_token_s is None and 0 < other.first_token_s <= other.total_s
    assert len({answer.text for answer in together}) > 1  # the model tells the queries apart
    assert len({answer.prompt_tokens for answer in together}) > 2  # and there was padding


def test_a_build_answers_as_its_checkpoint_does(student_folder, build_folder, queries):
    checkpoint, build = open_subject(spec(student_folder)), open_subject(spec(build_folder))
    for one, other in zip(checkpoint.answer(queries), build.answer(queries), strict=True):
        assert (one.text, one.tokens, one.prompt_tokens) == (other.text, other.tokens, other.prompt_tokens)
    assert (checkpoint.facts.kind, build.facts.kind) == ("checkpoint", "build")
    assert (checkpoint.facts.precision, build.facts.precision) == ("float32", "fp32")
    assert checkpoint.facts.weights_bytes == (student_folder / "model.safetensors").stat().st_size
    assert build.facts.weights_bytes == sum(path.stat().st_size for path in (build_folder / "onnx").iterdir())


def test_a_build_answers_where_torch_cannot_be_imported(build_folder):
    program = f"""
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from PIL import Image
import bench.run
from bench.subject import open_subject
from bench.types import Query, SubjectSpec
subject = open_subject(SubjectSpec(path=Path({str(build_folder)!r}), name="build", max_new_tokens=4))
answer, = subject.answer([Query(id="1", parts=(Image.new("RGB", (40, 40)), "read"))])
assert answer.tokens and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_models_own_settings_are_the_default(student_folder, tmp_path):
    assert (
        open_subject(spec(student_folder, greedy=False, max_new_tokens=None)).facts.generation[
            "max_new_tokens"
        ]
        == json.loads((student_folder / "generation_config.json").read_text())["max_new_tokens"]
    )
    copy = shutil.copytree(student_folder, tmp_path / "sampling")
    own = {"do_sample": True, "temperature": 3.0, "top_k": 0, "eos_token_id": 2, "pad_token_id": 0}
    (copy / "generation_config.json").write_text(json.dumps(own))
    subject = open_subject(spec(copy, greedy=False, max_new_tokens=None))
    assert subject.facts.generation["do_sample"] is True
    # transformers would stop after twenty tokens where the settings name no limit.
    assert subject.facts.generation["max_new_tokens"] == MAX_NEW_TOKENS


def test_sampling_is_seeded_by_the_query(student_folder, tmp_path, queries):
    copy = shutil.copytree(student_folder, tmp_path / "sampling")
    own = {"do_sample": True, "temperature": 3.0, "top_k": 0, "eos_token_id": 2, "pad_token_id": 0}
    (copy / "generation_config.json").write_text(json.dumps(own))
    subject = open_subject(spec(copy, greedy=False))
    first = [answer.text for answer in subject.answer(queries)]
    subject.answer(queries[:1])
    assert [answer.text for answer in subject.answer(queries)] == first
    other = open_subject(spec(copy, greedy=False, seed=1))
    assert [answer.text for answer in other.answer(queries)] != first
    assert other.fingerprint != subject.fingerprint


def test_the_fingerprint_follows_weights_and_settings(student_folder, tmp_path):
    one = spec(student_folder)
    subject = open_subject(one)
    assert open_subject(replace(one, name="other", threads=1)).fingerprint == subject.fingerprint
    assert open_subject(replace(one, max_new_tokens=9)).fingerprint != subject.fingerprint
    copy = shutil.copytree(student_folder, tmp_path / "copy")
    assert open_subject(spec(copy)).fingerprint == subject.fingerprint
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert open_subject(spec(copy)).fingerprint != subject.fingerprint


def test_folders_that_are_no_subject(tmp_path, build_folder):
    with pytest.raises(ModelError, match="no such folder"):
        open_subject(spec(tmp_path / "no"))
    with pytest.raises(ModelError, match=r"neither a build's manifest nor a config\.json"):
        open_subject(spec(tmp_path))
    (tmp_path / "manifest.json").write_text('{"kind": "run"}')
    with pytest.raises(ModelError, match="kind 'run'"):
        open_subject(spec(tmp_path))
    copy = shutil.copytree(build_folder, tmp_path / "flipped")
    graph = next((copy / "onnx").glob("decoder*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BuildError, match="SHA-256"):
        open_subject(spec(copy))


def test_no_device_is_pretended(student_folder, build_folder):
    import torch

    for folder in (student_folder, build_folder):
        with pytest.raises(DeviceError, match="unknown device"):
            open_subject(spec(folder, device="tpu"))
        with pytest.raises(DeviceError, match="no Jetson"):
            open_subject(spec(folder, device="jetson"))
        if not torch.cuda.is_available():
            with pytest.raises(DeviceError):
                open_subject(spec(folder, device="cuda"))
