"""The decoder's graph against torch: prefill, a past that grows, one buffer as past and present, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tests.export.graphs import session

TOLERANCE = 1e-4
STEPS = 4
ROWS = (11, 6)


@pytest.fixture(scope="module")
def decoder(fp32_graphs: Path) -> onnxruntime.InferenceSession:
    return session(fp32_graphs / "decoder_model_merged.onnx")


def embeddings(model: Any, length: int, seed: int) -> np.ndarray:
    ids_S = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.get_input_embeddings()(ids_S).numpy()


def torch_logits(model: Any, embeds_SD: np.ndarray) -> np.ndarray:
    """Logits_SV of one row without padding or cache."""
    inputs = {
        "inputs_embeds": torch.from_numpy(embeds_SD)[None],
        "attention_mask": torch.ones(1, len(embeds_SD), dtype=torch.int64),
        "position_ids": torch.from_numpy(positions([0], len(embeds_SD))),
    }
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[0].numpy()


def past_of(decoder: onnxruntime.InferenceSession, batch: int, length: int) -> dict[str, np.ndarray]:
    return {
        entry.name: np.zeros((batch, entry.shape[1], length, entry.shape[3]), "f4")
        for entry in decoder.get_inputs()
        if entry.name.startswith("past_key_values.")
    }


def positions(first: Any, count: int) -> np.ndarray:
    """Text positions_3BS from each row's first one."""
    return np.tile(np.asarray(first)[:, None] + np.arange(count), (3, 1, 1)).astype(np.int64)


def run(decoder: onnxruntime.InferenceSession, feed: dict[str, Any], keep: int = 0) -> dict[str, np.ndarray]:
    names = [entry.name for entry in decoder.get_outputs()]
    values = decoder.run(names, {**feed, "num_logits_to_keep": np.array(keep, np.int64)})
    return dict(zip(names, values, strict=True))


def test_prefill_then_steps_with_a_growing_past(student: Any, decoder: Any) -> None:
    embeds_SD = embeddings(student[0], ROWS[0] + STEPS, 0)
    expected = torch_logits(student[0], embeds_SD)
    past, start = past_of(decoder, 1, 0), 0
    for end in (ROWS[0], *range(ROWS[0] + 1, len(embeds_SD) + 1)):
        feed = {
            "inputs_embeds": embeds_SD[None, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": positions([start], end - start),
        }
        found = run(decoder, {**feed, **past})
        assert np.abs(found["logits"][0] - expected[start:end]).max() < TOLERANCE
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        assert all(value.shape[2] == end for value in past.values())
        start = end


def test_a_prompt_in_two_parts(student: Any, decoder: Any) -> None:
    """A later part of a prompt attends to the first one and causally to itself."""
    embeds_SD = embeddings(student[0], 12, 1)
    expected = torch_logits(student[0], embeds_SD)
    past = past_of(decoder, 1, 0)
    for start, end in ((0, 5), (5, 12)):
        feed = {
            "inputs_embeds": embeds_SD[None, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": positions([start], end - start),
        }
        found = run(decoder, {**feed, **past})
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        assert np.abs(found["logits"][0] - expected[start:end]).max() < TOLERANCE


@pytest.mark.parametrize("keep", [1, 3])
def test_logits_of_the_last_positions_alone(student: Any, decoder: Any, keep: int) -> None:
    embeds_SD = embeddings(student[0], 9, 2)
    feed = {
        "inputs_embeds": embeds_SD[None],
        "attention_mask": np.ones((1, 9), np.int64),
        "position_ids": positions([0], 9),
        **past_of(decoder, 1, 0),
    }
    found = run(decoder, feed, keep)["logits"]
    assert found.shape[:2] == (1, keep)
    assert np.abs(found[0] - torch_logits(student[0], embeds_SD)[-keep:]).max() < TOLERANCE


def test_one_buffer_is_past_and_present(student: Any, decoder: Any) -> None:
    """The same memory bound as input and output: the operator writes where it reads."""
    embeds_SD = embeddings(student[0], ROWS[0] + STEPS, 3)
    expected = torch_logits(student[0], embeds_SD)
    buffers = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(value)
        for name, value in past_of(decoder, 1, 64).items()
    }
    places = {name: value.data_ptr() for name, value in buffers.items()}
    start = 0
    for end in (ROWS[0], *range(ROWS[0] + 1, len(embeds_SD) + 1)):
        binding = decoder.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds_SD[None, start:end]))
        binding.bind_cpu_input("attention_mask", np.ones((1, end), np.int64))
        binding.bind_cpu_input("position_ids", positions([start], end - start))
        binding.bind_cpu_input("num_logits_to_keep", np.array(0, np.int64))
        binding.bind_output("logits", "cpu")
        for name, value in buffers.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        decoder.run_with_iobinding(binding)
        found = binding.get_outputs()[0].numpy()
        assert np.abs(found[0] - expected[start:end]).max() < TOLERANCE
        start = end
    for name, value in buffers.items():
        assert value.data_ptr() == places[name] and value.shape()[2] == 64
        assert value.numpy()[:, :, : len(embeds_SD)].any((0, 1, 3)).all()
        assert not value.numpy()[:, :, len(embeds_SD) :].any()


@pytest.mark.parametrize("buffer", [None, 40], ids=["growing", "buffer"])
def test_rows_of_unequal_length(student: Any, decoder: Any, buffer: int | None) -> None:
    """Each row as torch computes it alone; a row's first new token overwrites its padding."""
    rows = [embeddings(student[0], length + STEPS, 10 + length) for length in ROWS]
    expected = [torch_logits(student[0], row) for row in rows]
    longest = max(ROWS)
    embeds_BSD = np.stack(
        [
            np.pad(row[:length], ((0, longest - length), (0, 0)))
            for row, length in zip(rows, ROWS, strict=True)
        ]
    )
    mask_BT = np.array([[1] * length + [0] * (longest - length) for length in ROWS], np.int64)
    past, first = past_of(decoder, 2, buffer or 0), [0, 0]
    for step in range(STEPS + 1):
        feed = {
            "inputs_embeds": embeds_BSD,
            "attention_mask": mask_BT,
            "position_ids": positions(first, embeds_BSD.shape[1]),
        }
        found = run(decoder, {**feed, **past})
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        for row, length in enumerate(ROWS):
            wanted = expected[row][:length] if step == 0 else expected[row][[length + step - 1]]
            assert np.abs(found["logits"][row, : len(wanted)] - wanted).max() < TOLERANCE
        if step < STEPS:
            first = [length + step for length in ROWS]
            embeds_BSD = np.stack([row[[place]] for row, place in zip(rows, first, strict=True)])
            mask_BT = np.concatenate([mask_BT, np.ones((2, 1), np.int64)], 1)
