"""The three graphs against the torch model they were traced from: any grid, batches, prefill and decoding."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from genrecal.core.errors import BuildError, ModelError
from genrecal.export.onnx_graphs import export_graphs

TOLERANCE = 1e-4  # ten times below the gate of every export; about 1e-5 is found
DECODE_STEPS = 4


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def graphs(fp32_graphs: Path) -> SimpleNamespace:
    return SimpleNamespace(
        vision=session(fp32_graphs / "vision_encoder.onnx"),
        embed=session(fp32_graphs / "embed_tokens.onnx"),
        decoder=session(fp32_graphs / "decoder_model_merged.onnx"),
    )


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def batch_of(processor: Any, prompts: list[tuple[list[tuple[int, int]], str]]) -> Any:
    """A left-padded batch of (image sizes, question) prompts."""
    images = [[noise(*size, seed) for seed, size in enumerate(sizes)] for sizes, _ in prompts]
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}] * len(sizes) + [{"type": "text", "text": text}],
                }
            ],
            add_generation_prompt=True,
            tokenize=False,
        )
        for sizes, text in prompts
    ]
    processor.tokenizer.padding_side = "left"
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


PROMPTS = {
    "small": [([(40, 40)], "how many?")],
    "wide": [([(300, 33)], "name the bar")],
    "tall": [([(50, 170)], "the answer is")],
    "large": [([(900, 700)], "name the tallest bar")],
    "two images": [([(64, 48), (130, 90)], "how many circles are in the image")],
    "left-padded batch": [([(80, 64)], "how many circles are in the image"), ([(120, 150)], "name")],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_logits_and_greedy_tokens_equal_torch(student: Any, graphs: SimpleNamespace, prompts: Any) -> None:
    model, processor = student
    batch = batch_of(processor, prompts)
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    (features,) = graphs.vision.run(
        None,
        {"pixel_values": batch["pixel_values"].numpy(), "image_grid_thw": batch["image_grid_thw"].numpy()},
    )
    embeds = graphs.embed.run(None, {"input_ids": ids})[0]
    embeds[ids == model.config.image_token_id] = features
    positions, _ = model.model.get_rope_index(
        batch["input_ids"], batch["image_grid_thw"], None, batch["attention_mask"]
    )
    positions = positions.numpy()

    text = model.config.text_config
    empty = np.zeros(
        (len(ids), text.num_key_value_heads, 0, text.hidden_size // text.num_attention_heads), "f4"
    )
    past = {
        name.name: empty for name in graphs.decoder.get_inputs() if name.name.startswith("past_key_values.")
    }
    assert len(past) == 2 * text.num_hidden_layers
    outputs = [output.name for output in graphs.decoder.get_outputs()]
    torch_input = dict(batch)
    for _ in range(1 + DECODE_STEPS):
        with torch.no_grad():
            expected = model(**torch_input, use_cache=True)
        found = dict(
            zip(
                outputs,
                graphs.decoder.run(
                    None,
                    {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, **past},
                ),
                strict=True,
            )
        )
        real = mask[:, -embeds.shape[1] :].astype(bool)  # padding computes what nobody reads
        expected_logits = expected.logits.numpy()
        assert np.abs(found["logits"] - expected_logits)[real].max() < TOLERANCE
        assert (found["logits"][:, -1].argmax(-1) == expected_logits[:, -1].argmax(-1)).all()

        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        following = expected_logits[:, -1].argmax(-1)[:, None]
        embeds = graphs.embed.run(None, {"input_ids": following})[0]
        mask = np.concatenate([mask, np.ones((len(ids), 1), mask.dtype)], 1)
        positions = np.repeat(positions.max((0, 2))[None, :, None], 3, 0) + 1
        torch_input = {
            "input_ids": torch.from_numpy(following),
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(positions),
            "past_key_values": expected.past_key_values,
        }


def test_image_features_of_several_frames_equal_torch(student: Any, graphs: SimpleNamespace) -> None:
    """Frames of a clip attend to themselves alone, also beside a still image of another size."""
    model, _ = student
    grid = torch.tensor([[3, 4, 6], [1, 8, 2], [2, 2, 4]])
    pixels = torch.rand(int(grid.prod(1).sum()), 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.model.visual(pixels, grid_thw=grid).numpy()
    found = graphs.vision.run(None, {"pixel_values": pixels.numpy(), "image_grid_thw": grid.numpy()})[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


def test_the_graphs_name_their_dynamic_axes(graphs: SimpleNamespace) -> None:
    shapes = {
        entry.name: entry.shape for entry in (*graphs.vision.get_inputs(), *graphs.vision.get_outputs())
    }
    assert shapes == {
        "pixel_values": ["num_patches", 384],
        "image_grid_thw": ["num_images", 3],
        "image_features": ["num_image_tokens", 64],
    }
    shapes = {entry.name: entry.shape for entry in graphs.decoder.get_inputs()}
    assert shapes["position_ids"] == [3, "batch_size", "sequence_length"]
    assert shapes["past_key_values.2.value"] == ["batch_size", 2, "past_sequence_length", 16]


def test_the_export_is_quiet_and_leaves_the_model_as_it_was(
    student: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, _ = student
    before = model.config.to_json_string(), model.config._attn_implementation, logging.root.manager.disable
    export_graphs(model, tmp_path)
    assert capfd.readouterr() == ("", "")
    after = model.config.to_json_string(), model.config._attn_implementation, logging.root.manager.disable
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decoder_model_merged.onnx",
        "embed_tokens.onnx",
        "vision_encoder.onnx",
    ]


def test_two_exports_are_byte_identical(student: Any, fp32_graphs: Path, tmp_path: Path) -> None:
    for path in export_graphs(student[0], tmp_path):
        assert path.read_bytes() == (fp32_graphs / path.name).read_bytes()


def test_another_family_is_refused(student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = student
    monkeypatch.setattr(model.config, "model_type", "pixtral", raising=False)
    with pytest.raises(ModelError, match=r"'pixtral' cannot be exported. Supported: qwen2_vl"):
        export_graphs(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_exporter_is_one_line(
    student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = student
    monkeypatch.delattr(model, "lm_head")
    with pytest.raises(BuildError, match="the ONNX export failed") as caught:
        export_graphs(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
