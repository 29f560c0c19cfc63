"""Adapters, several processes and endpoints: each answers as the plain checkpoint or build does."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bench.subject import open_subject, remote_of, spec_from_json, spec_of, spec_to_json
from bench.types import SubjectSpec
from edge.model import EdgeModel
from edge.serve.settings import ServeSettings
from genrecal.core.errors import BenchError, ConfigError, DeviceError, ModelError
from tests.bench.chat_server import Step, chat_server
from tests.edge.serve.conftest import NAME, Server
from tests.export.test_adapter import write_adapter


def spec(path, **more):
    return SubjectSpec(**{"path": path, "name": path.name, "greedy": True, "max_new_tokens": 8, **more})


def said(answers):
    return [(one.text, one.tokens, one.prompt_tokens) for one in answers]


@pytest.fixture(scope="module")
def adapter(student_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    return write_adapter(student_folder, folder, r"model\.language_model\..*\.(q_proj|down_proj)")


@pytest.fixture(scope="module")
def merged(student_folder, adapter, tmp_path_factory):
    from peft import PeftModel

    from genrecal.models.processors import load_model, load_processor

    folder = tmp_path_factory.mktemp("merged") / "student"
    PeftModel.from_pretrained(load_model(student_folder), str(adapter)).merge_and_unload().save_pretrained(
        folder
    )
    load_processor(student_folder).save_pretrained(folder)
    return folder


def test_an_adapter_answers_as_its_merged_checkpoint_does(student_folder, adapter, merged, queries):
    adapted = open_subject(spec(student_folder, adapter=adapter))
    assert said(adapted.answer(queries)) == said(open_subject(spec(merged)).answer(queries))
    plain = open_subject(spec(student_folder))
    assert said(adapted.answer(queries)) != said(plain.answer(queries))
    assert adapted.fingerprint != plain.fingerprint
    assert adapted.facts.weights_bytes > plain.facts.weights_bytes
    assert said([adapted.answer([query])[0] for query in queries]) == said(adapted.answer(queries))


def test_a_folder_without_an_adapter_is_refused(student_folder, tmp_path):
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        open_subject(spec(student_folder, adapter=tmp_path))


@pytest.mark.full
def test_several_processes_answer_as_one_does(student_folder, queries):
    one = open_subject(spec(student_folder))
    several = open_subject(spec(student_folder, processes=2, batch_size=2))
    try:
        assert (several.lanes, several.chunk, several.facts) == (2, 2, one.facts)
        assert several.fingerprint == one.fingerprint
        for _ in range(2):
            assert said(several.answer(queries)) == said(one.answer(queries))
        (pid,) = several._all[0]._processes
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="killed"):
            for _ in range(2):
                several.answer(queries[:1])
    finally:
        several.close()
    (student_folder.parent / "empty").mkdir()
    (student_folder.parent / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError):  # told by the process, not by its death
        open_subject(spec(student_folder.parent / "empty", processes=2))


def test_processes_without_their_gpus(student_folder, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(DeviceError, match="9 processes need a GPU each"):
        open_subject(spec(student_folder, processes=9, device="cuda"))


@pytest.fixture(scope="module")
def served(build_folder):
    server = Server(EdgeModel.open(build_folder), ServeSettings())
    yield server
    server.stop()


def test_an_endpoint_answers_as_the_build_behind_it_does(served, build_folder, queries, monkeypatch):
    monkeypatch.setenv("GENRECAL_SUBJECT_API_KEY", "k")
    endpoint = open_subject(
        spec_of(f"{served.url}/v1/", model=NAME, greedy=True, max_new_tokens=8, batch_size=3)
    )
    build = open_subject(spec(build_folder))
    answers = endpoint.answer(queries)
    assert said(answers) == said(build.answer(queries))
    assert all(0 < one.first_token_s <= one.total_s for one in answers)
    assert (endpoint.lanes, endpoint.chunk) == (3, 1)
    facts = endpoint.facts
    assert (facts.kind, facts.weights_bytes) == ("endpoint", None)
    assert facts.about == {"url": f"{served.url}/v1", "model": NAME, "served_models": [NAME]}


def test_an_endpoint_that_does_not_do_its_part(monkeypatch, queries):
    monkeypatch.setenv("GENRECAL_SUBJECT_API_KEY", "k")
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    piece = b'data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "hi"}%s}]}\n\n'
    stop = b', "finish_reason": "stop"'
    counts = (
        b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
    )

    def events(body):
        return Step(body=body, headers={"Content-Type": "text/event-stream"})

    with chat_server() as server:
        subject = open_subject(spec_of(server.url, model="m"))
        server.script = [
            events(piece % b""),
            events(b"data: {nonsense\n\n"),
            503,
            events(piece % stop + counts),
        ]
        (answer,) = subject.answer(queries[:1])
        assert (answer.text, answer.tokens) == ("hi", 1) and len(server.asked) == 4
        url = server.asked[0]["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/png;base64,") and "seed" in server.asked[0]
        server.script = [events(piece % stop)]
        with pytest.raises(BenchError, match="does not count tokens"):
            subject.answer(queries[:1])
        server.script = [400]
        with pytest.raises(BenchError, match="400"):
            subject.answer(queries[:1])


def test_specs_survive_json(tmp_path):
    remote = remote_of("me@board", "ssh -p 22", "/opt/genrecal")
    for one in (
        spec_of(tmp_path, adapter=tmp_path / "a", processes=2),
        spec_of(tmp_path, remote=remote, trusted_keys=("k",)),
        spec_of("http://here/v1", model="m"),
    ):
        assert spec_from_json(spec_to_json(one)) == one
    assert remote.ssh == ("ssh", "-p", "22")
    for host in ("-oProxyCommand=x", "", "a b"):
        with pytest.raises(ConfigError):
            remote_of(host, "ssh", "genrecal")


@pytest.mark.parametrize("more", [{"adapter": Path("x")}, {"processes": 2}, {"model": "m"}])
def test_options_of_another_kind_are_refused(build_folder, more):
    with pytest.raises(ModelError, match="goes with a subject of kind"):
        open_subject(replace(spec(build_folder), **more))
