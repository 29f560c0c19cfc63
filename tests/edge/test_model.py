"""Whole answers of a build against those of the checkpoint, and without torch in reach."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from edge import generate
from edge.device import CUDA_PROVIDER, Device
from edge.model import EdgeModel
from edge.prompt import Part
from edge.session import Sessions
from genrecal.core.errors import BuildError, ConfigError, DataError, DeviceError
from tests.edge.conftest import noise

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
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts
    ]
    text = student.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [part for part in parts if isinstance(part, Image.Image)]
    return student.processor(text=[text], images=images or None, return_tensors="pt")


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
    runs, decode = [], edge_model.sessions.decode
    monkeypatch.setattr(edge_model.sessions, "decode", lambda *given: runs.append(given) or decode(*given))
    assert edge_model.answer(QUERIES[2], max_new_tokens=24).token_ids == whole.token_ids
    assert len(runs) == -(-whole.prompt_tokens // length) + len(whole.token_ids) - 1


def test_a_provider_that_does_not_start_is_not_passed_over(edge_model: EdgeModel) -> None:
    """ONNX Runtime would run on the CPU instead, and its speed would be taken for the GPU's."""
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip(f"SKIPPED LOUDLY: this onnxruntime has {CUDA_PROVIDER}")
    with (
        pytest.warns(UserWarning, match=CUDA_PROVIDER),
        pytest.raises(DeviceError, match="fell back to the CPU"),
    ):
        Sessions(edge_model.build, Device(name="cuda", board=None), 1)


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
    sources = (REPOSITORY / "edge").glob("*.py")
    lines = chain.from_iterable(path.read_text(encoding="utf-8").splitlines() for path in sources)
    imported = {line.split()[1] for line in lines if line.lstrip().startswith(("import ", "from "))}
    ours = {name for name in imported if name.partition(".")[0] in ("genrecal", "bench", "cli", "tests")}
    assert ours and all(name.startswith("genrecal.core") for name in ours)
