"""Whole answers of a build against those of the checkpoint, and without torch in reach."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from edge import build as layout
from edge import generate
from edge.build import Build
from edge.device import CUDA_PROVIDER, Device
from edge.model import EdgeModel
from edge.prompt import Part
from edge.session import Sessions
from genrecal.core.errors import BuildError, ConfigError, DataError, DeviceError
from genrecal.core.manifest import write_manifest
from genrecal.export.onnx_graphs import export_graphs
from tests.edge.conftest import noise
from tests.tiny import CORPUS

REPOSITORY = Path(__file__).parents[2]
QUERIES: list[tuple[Part, ...]] = [
    (noise(48, 48), "what is in the picture?"),
    (noise(121, 40), "how many red circles are there?\nA. 1\nB. 2\nAnswer with the option's letter."),
    ("compare", noise(33, 90), "with", noise(200, 150, seed=1), "and explain your answer."),
    (noise(64, 96), noise(17, 250), "read the text."),
    ("no picture at all",),
]


def checkpoint_inputs(student: SimpleNamespace, parts: tuple[Part, ...]) -> dict[str, torch.Tensor]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]
    return student.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        input_data_format="channels_last",
    )


def checkpoint_answer(
    student: SimpleNamespace, parts: tuple[Part, ...], **options: object
) -> tuple[list[int], torch.Tensor]:
    """Ids of the generated tokens and the logits_TV that they were taken from."""
    inputs = checkpoint_inputs(student, parts)
    output = student.model.generate(
        **inputs, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(output.logits)


@pytest.mark.parametrize("parts", QUERIES, ids=range(len(QUERIES)))
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_equal_the_checkpoints(
    student: SimpleNamespace, edge_model: EdgeModel, parts: tuple[Part, ...], penalty: float
) -> None:
    expected, logits_TV = checkpoint_answer(student, parts, max_new_tokens=24, repetition_penalty=penalty)
    answer = edge_model.answer(parts, max_new_tokens=24, repetition_penalty=penalty)
    assert list(answer.token_ids) == expected
    assert answer.text == student.processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.stop == ("eos" if expected[-1] in edge_model.settings.eos_token_ids else "length")
    assert answer.prompt_tokens == checkpoint_inputs(student, parts)["input_ids"].shape[1]
    forced_AV = edge_model.forced_logits(parts, expected)
    assert forced_AV.shape == (len(expected) + 1, logits_TV.shape[1])
    assert np.abs(forced_AV[:-1] - logits_TV.numpy()).max() < 1e-3


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.full)])
def test_greedy_answers_of_many_prompts(student: SimpleNamespace, edge_model: EdgeModel, count: int) -> None:
    generator = np.random.default_rng(count)
    words = " ".join(CORPUS).split()
    for number in range(count):
        text = " ".join(generator.choice(words, int(generator.integers(1, 30))))
        sizes = generator.integers(8, 160, (int(generator.integers(0, 3)), 2)).tolist()
        parts = (*(noise(width, height, seed=number) for width, height in sizes), text)
        expected, _ = checkpoint_answer(student, parts, max_new_tokens=16)
        assert list(edge_model.answer(parts, max_new_tokens=16).token_ids) == expected, number


def test_every_family_answers_like_its_checkpoint(family_pair: SimpleNamespace) -> None:
    model = family_pair.model
    for parts in QUERIES:
        if family_pair.name == "llava_onevision" and len(parts) > 2:
            parts = (*(part for part in parts if not isinstance(part, str)), "compare")
        expected, logits_TV = checkpoint_answer(family_pair.student, parts, max_new_tokens=12)
        answer = model.answer(parts, max_new_tokens=12, do_sample=False)
        assert list(answer.token_ids) == expected
        forced_AV = model.forced_logits(parts, expected)
        assert np.abs(forced_AV[:-1] - logits_TV.numpy()).max() < 1e-4


def test_a_build_in_half_precision(
    student_folder: Path, build_folder: Path, edge_model: EdgeModel, tmp_path: Path
) -> None:
    folder = tmp_path / "fp16"
    graphs = export_graphs(student_folder, folder / "onnx", precision="fp16", suffix="_fp16")
    for name in layout.SETTINGS_FILES:
        if (build_folder / name).is_file():
            shutil.copyfile(build_folder / name, folder / name)
    facts = {"family": "qwen2_vl", "precision": "fp16", "target": "cpu", "provenance": {}, "quantization": {}}
    names = {graph: path.relative_to(folder).as_posix() for graph, path in graphs.items()}
    write_manifest(folder, kind=layout.KIND, graphs=names, **facts)
    half = EdgeModel.open(folder, threads=1)
    assert half.sessions.layout.dtype == np.float16
    assert half.sessions.layout.token_bytes * 2 == edge_model.sessions.layout.token_bytes
    for parts in QUERIES:
        difference = half.forced_logits(parts, [5, 6]) - edge_model.forced_logits(parts, [5, 6])
        assert 0 < np.abs(difference).max() < 0.1
    alone = [half.answer(parts, max_new_tokens=8).token_ids for parts in QUERIES]
    assert [answer.token_ids for answer in half.answers(QUERIES, max_new_tokens=8)] == alone


def test_a_batch_gives_each_query_its_own_answer(edge_model: EdgeModel) -> None:
    """Prompts of different lengths, answers that end at different steps."""
    alone = [edge_model.answer(parts, max_new_tokens=24) for parts in QUERIES]
    ends = tuple({answer.token_ids[3 + number] for number, answer in enumerate(alone[:3])})
    for options in ({}, {"eos_token_ids": ends}, {"repetition_penalty": 1.3}):
        alone = [edge_model.answer(parts, max_new_tokens=24, **options) for parts in QUERIES]
        together = edge_model.answers(QUERIES, max_new_tokens=24, **options)
        assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        assert [answer.stop for answer in together] == [answer.stop for answer in alone]
    assert len({len(answer.token_ids) for answer in edge_model.answers(QUERIES, eos_token_ids=ends)}) > 1
    assert edge_model.answers([]) == []


def test_a_batch_of_every_family(family_pair: SimpleNamespace) -> None:
    queries = [(noise(48, 48), "what?"), ("read the text, and then explain your answer.",)]
    alone = [family_pair.model.answer(parts, max_new_tokens=8).token_ids for parts in queries]
    together = family_pair.model.answers(queries, max_new_tokens=8)
    assert [answer.token_ids for answer in together] == alone


def test_answers_grow_beyond_the_first_buffer(
    student: SimpleNamespace, edge_model: EdgeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = checkpoint_answer(student, QUERIES[0], max_new_tokens=100)
    monkeypatch.setattr(generate, "ANSWER_TOKENS", 3)
    edge_model.forget()
    options = (
        {"max_new_tokens": 100, "eos_token_ids": ()} if len(expected) == 100 else {"max_new_tokens": 100}
    )
    assert list(edge_model.answer(QUERIES[0], **options).token_ids) == expected


def test_limits_of_length_and_time(edge_model: EdgeModel) -> None:
    prompt = edge_model.answer(QUERIES[0], max_new_tokens=1, eos_token_ids=()).prompt_tokens
    answer = edge_model.answer(QUERIES[0], max_new_tokens=50, max_length=prompt + 5, eos_token_ids=())
    assert len(answer.token_ids) == 5 and answer.stop == "length"
    answer = edge_model.answer(QUERIES[0], max_new_tokens=400, max_time=1e-4, eos_token_ids=())
    assert len(answer.token_ids) == 1 and answer.stop == "time"


def test_a_stream_that_is_closed_ends(edge_model: EdgeModel) -> None:
    stream = edge_model.stream(QUERIES[0], max_new_tokens=200, eos_token_ids=())
    next(iter(stream))
    stream.close()
    whole = edge_model.answer(QUERIES[0], max_new_tokens=8, eos_token_ids=())
    assert whole.reused_tokens == whole.prompt_tokens - 1


def test_two_streams_at_a_time_do_not_mix(edge_model: EdgeModel) -> None:
    alone = [edge_model.answer(parts, max_new_tokens=12).text for parts in QUERIES[:2]]
    streams = [edge_model.stream(parts, max_new_tokens=12) for parts in QUERIES[:2]]
    pieces: list[list[str]] = [[], []]
    for both in itertools.zip_longest(*streams, fillvalue=""):
        for given, piece in zip(pieces, both, strict=True):
            given.append(piece)
    assert ["".join(given) for given in pieces] == alone


def test_answers_depend_on_the_image(edge_model: EdgeModel) -> None:
    """The comparison above means nothing if the images do not matter."""
    first, second = (
        edge_model.forced_logits((noise(64, 64, seed=seed), "what is this?"), []) for seed in (1, 2)
    )
    assert np.abs(first - second).max() > 0.1


def test_times_count_the_steps(edge_model: EdgeModel) -> None:
    answer = edge_model.answer(QUERIES[0], max_new_tokens=8, eos_token_ids=())
    assert len(answer.token_ids) == 8
    assert answer.first_token_s > 0 and answer.decode_s > 0
    assert answer.tokens_per_s == 7 / answer.decode_s
    single = edge_model.answer(QUERIES[0], max_new_tokens=1, eos_token_ids=())
    assert single.decode_s == 0 and single.tokens_per_s is None


def test_a_stream_gives_the_answer_in_pieces(edge_model: EdgeModel) -> None:
    whole = edge_model.answer(QUERIES[0], max_new_tokens=40)
    stream = edge_model.stream(QUERIES[0], max_new_tokens=40)
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == whole.text
    assert stream.answer.token_ids == whole.token_ids
    assert len(pieces) > 1 and all(pieces)


def test_a_stop_string_ends_the_answer_before_it(edge_model: EdgeModel) -> None:
    whole = edge_model.answer(QUERIES[0], max_new_tokens=40, eos_token_ids=())
    start = next(place for place in range(3, len(whole.text)) if whole.text[place : place + 2].isprintable())
    stop = whole.text[start : start + 2]
    stream = edge_model.stream(QUERIES[0], max_new_tokens=40, eos_token_ids=(), stop_strings=(stop,))
    text = "".join(stream)
    assert stream.answer.stop == "stop_string"
    assert text == stream.answer.text == whole.text[: whole.text.index(stop)]
    assert len(stream.answer.token_ids) < len(whole.token_ids)


def test_draws_follow_the_checkpoints_probabilities(student: SimpleNamespace, edge_model: EdgeModel) -> None:
    """The first token over many seeds against transformers' own processed scores."""
    options = {"do_sample": True, "temperature": 1.5, "top_k": 12, "top_p": 0.95, "repetition_penalty": 1.2}
    inputs, draws = checkpoint_inputs(student, QUERIES[0]), 2000
    output = student.model.generate(
        **inputs, max_new_tokens=1, output_scores=True, return_dict_in_generate=True, **options
    )
    expected_V = output.scores[0][0].softmax(-1).numpy()
    drawn = [
        edge_model.answer(QUERIES[0], max_new_tokens=1, seed=seed, **options).token_ids[0]
        for seed in range(draws)
    ]
    shares_V = np.bincount(drawn, minlength=len(expected_V)) / draws
    assert not shares_V[expected_V == 0].any() and (expected_V > 0).sum() > 3
    assert (np.abs(shares_V - expected_V) < 4.5 * np.sqrt(expected_V / draws) + 1e-9).all()


def test_sampling_repeats_by_seed(edge_model: EdgeModel) -> None:
    def ids(seed: int) -> tuple[int, ...]:
        options = {"do_sample": True, "temperature": 3.0, "top_k": 0, "seed": seed}
        return edge_model.answer(QUERIES[0], max_new_tokens=12, eos_token_ids=(), **options).token_ids

    assert ids(1) == ids(1)
    assert len({ids(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_long_prompt_is_run_in_pieces(
    edge_model: EdgeModel, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Keys and values of the pieces are those of one run, on all three axes of the positions."""
    whole = edge_model.answer(QUERIES[2], max_new_tokens=24)
    assert length < whole.prompt_tokens < generate.PREFILL_TOKENS
    monkeypatch.setattr(generate, "PREFILL_TOKENS", length)
    edge_model.forget()
    runs, decode = [], edge_model.sessions.decode
    monkeypatch.setattr(
        edge_model.sessions, "decode", lambda *given, **more: runs.append(given) or decode(*given, **more)
    )
    assert edge_model.answer(QUERIES[2], max_new_tokens=24).token_ids == whole.token_ids
    assert len(runs) == -(-whole.prompt_tokens // length) + len(whole.token_ids) - 1


def made_for(build: Build, target: str) -> Build:
    return replace(build, manifest={**build.manifest, "target": target})


def test_a_provider_that_does_not_start_is_not_passed_over(edge_model: EdgeModel) -> None:
    """ONNX Runtime would run on the CPU instead, and its speed would be taken for the GPU's."""
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip(f"SKIPPED LOUDLY: this onnxruntime has {CUDA_PROVIDER}")
    with (
        pytest.warns(UserWarning, match=CUDA_PROVIDER),
        pytest.raises(DeviceError, match="fell back to the CPU"),
    ):
        Sessions(made_for(edge_model.build, "jetson"), Device(name="cuda", board=None), 1)


@pytest.mark.parametrize("device", ["cuda", "jetson"])
def test_a_build_for_the_cpu_is_not_run_on_a_gpu(edge_model: EdgeModel, device: str) -> None:
    """Its attention would fall back to the CPU, and nobody would be told."""
    fix = r"Make one with: genrecal export RUN --fp16 --target jetson; or open this with --device cpu"
    with pytest.raises(DeviceError, match=rf"this fp32 build is made for the CPU: on {device} .*{fix}"):
        Sessions(edge_model.build, Device(name=device, board=None), 1)


@pytest.mark.parametrize(
    ("parts", "overrides", "error", "message"),
    [
        ((), {}, DataError, "the query is empty"),
        ((3,), {}, DataError, "a part of the query is a int"),
        ((Image.new("RGB", (402, 2)), "?"), {}, DataError, "402x2 is longer than 200:1"),
        (("?",), {"temprature": 1}, ConfigError, "'temprature'. Did you mean 'temperature'"),
        (("?",), {"top_p": 0.0}, ConfigError, "'top_p' is 0.0, it must be above 0"),
    ],
)
def test_bad_queries_are_one_line(
    edge_model: EdgeModel, parts: tuple, overrides: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        edge_model.answer(parts, **overrides)
    assert "\n" not in str(caught.value)


def test_bad_arguments_of_open(build_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="no device is called 'tpu'"):
        EdgeModel.open(build_folder, device="tpu")
    with pytest.raises(ConfigError, match="'threads' is 0"):
        EdgeModel.open(build_folder, threads=0)
    monkeypatch.setattr("edge.model.PREPROCESSORS", {"other": None})
    with pytest.raises(
        BuildError, match=r"family 'qwen2_vl', which this runtime does not know. Supported: other"
    ):
        EdgeModel.open(build_folder)


WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
from dataclasses import replace
from pathlib import Path
from edge.model import EdgeModel
from genrecal.core.images import open_image

model = EdgeModel.open(Path(sys.argv[1]), threads=1)
answer = model.answer((open_image(Path(sys.argv[2])), sys.argv[3]), max_new_tokens=12)
print(*answer.token_ids)
for name in {absent!r}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} can be imported: this run proves nothing")
"""
ABSENT = ("torch", "transformers", "optimum", "onnx", "safetensors", "huggingface_hub", "sklearn", "scipy")


def test_a_build_answers_where_torch_is_absent(
    build_folder: Path, edge_model: EdgeModel, tmp_path: Path
) -> None:
    image, question = noise(90, 50), "how many red circles are there?"
    image.save(tmp_path / "image.png")
    run = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_TORCH.format(absent=ABSENT)),
            *(str(build_folder), str(tmp_path / "image.png"), question),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    expected = edge_model.answer((image, question), max_new_tokens=12).token_ids
    assert list(map(int, run.stdout.split())) == list(expected)


def test_edge_imports_the_core_alone() -> None:
    sources = (REPOSITORY / "edge").rglob("*.py")
    lines = itertools.chain.from_iterable(path.read_text(encoding="utf-8").splitlines() for path in sources)
    imported = {line.split()[1] for line in lines if line.lstrip().startswith(("import ", "from "))}
    ours = {name for name in imported if name.partition(".")[0] in ("genrecal", "bench", "cli", "tests")}
    assert ours and all(name.startswith("genrecal.core") for name in ours)
