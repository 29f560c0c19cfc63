"""A converted checkpoint against its authors' own code: prompts, token ids, pixels, logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genrecal.core.files import read_json
from genrecal.core.manifest import verify_manifest
from genrecal.data.inputs import answer_form, blank_prompt, encode_prompt, placeholders
from genrecal.models.families import family_of, segment_of
from genrecal.models.processors import load_model
from genrecal.models.vlm import text_body
from tests.convert.conftest import Converted
from tests.convert.reference import CASES

TOLERANCE = 1e-4


@pytest.mark.parametrize("case", CASES)
def test_prompt_ids_and_logits_are_the_authors(converted: Converted, case: str) -> None:
    reference, processor = converted.reference, converted.processor()
    encoded = processor.apply_chat_template(
        reference.messages(case),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids_S = encoded["input_ids"][0]
    assert ids_S.tolist() == reference.tensor(case, "input_ids").tolist()
    text = processor.tokenizer.decode(ids_S, clean_up_tokenization_spaces=False)
    assert text.removeprefix(processor.tokenizer.bos_token or "") == reference.prompt(case)
    model = converted.model()
    with torch.inference_mode():
        logits_SV = model(**encoded).logits[0]
        if case != "text":
            features = model.get_image_features(encoded["pixel_values"])
            expected = reference.tensor(case, "image_features").float()
            assert (features - expected).abs().max() < 2e-3  # stored in float16
    positions = reference.tensor(case, "positions").long()
    expected_PV = reference.tensor(case, "logits")
    assert expected_PV.std() > 1
    assert (logits_SV[positions] - expected_PV).abs().max() < TOLERANCE


def test_pixels_are_the_authors(converted: Converted) -> None:
    messages = converted.reference.messages("one")
    encoded = converted.processor().apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )
    values = encoded["pixel_values"]
    assert len(values) == converted.reference.tensor("one", "tiles").sum()
    expected = converted.reference.tensor("one", "pixel_values")  # the first tile and the overview
    assert (values[[0, -1]] - expected).abs().max() < 1e-6


def test_a_batch_is_its_rows(converted: Converted) -> None:
    processor, reference = converted.processor(), converted.reference
    encoded = processor.apply_chat_template(
        [reference.messages("two"), reference.messages("text")],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
    )
    for row, case in enumerate(("two", "text")):
        ids = encoded["input_ids"][row][encoded["attention_mask"][row].bool()]
        assert ids.tolist() == reference.tensor(case, "input_ids").tolist()
    assert len(encoded["pixel_values"]) == reference.tensor("two", "tiles").sum()


def test_it_answers(converted: Converted) -> None:
    processor, model = converted.processor(), converted.model()
    encoded = processor.apply_chat_template(
        converted.reference.messages("one"),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**encoded, max_new_tokens=4, do_sample=False)
    last = encoded["input_ids"].shape[1] - 1
    positions = converted.reference.tensor("one", "positions").tolist()
    best = converted.reference.tensor("one", "logits")[positions.index(last)].argmax()
    assert ids[0, last + 1] == best
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_rest_of_genrecal_reads_it(converted: Converted) -> None:
    processor, model = converted.processor(), converted.model()
    family = family_of(model.config)
    segments = {segment_of(name, family) for name, _ in model.named_parameters()}
    assert segments == {"vision_encoder", "vision_projector", "embedding", "body", "head"}
    assert text_body(model).embed_tokens is model.get_input_embeddings()
    assert answer_form(processor).end_id == processor.tokenizer.eos_token_id
    assert answer_form(processor).lead == ""
    tiles = blank_prompt(processor).vision["pixel_values"]
    assert tiles.shape[0] == 1
    images = [part["image"] for part in converted.reference.messages("two")[0]["content"] if "image" in part]
    prompt = encode_prompt(processor, converted.reference.messages("two"), images)
    assert prompt.ids.tolist() == converted.reference.tensor("two", "input_ids").tolist()
    assert all(text in processor.tokenizer.get_vocab() for text in placeholders(processor))


def test_the_folder_is_what_save_pretrained_would_write(converted: Converted, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    load_model(converted.folder, dtype="auto").save_pretrained(saved)
    ours, theirs = (
        {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
        for folder in (converted.folder, saved)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_json(converted.folder / "config.json") == read_json(saved / "config.json")


def test_shards_index_and_manifest(converted: Converted) -> None:
    manifest = verify_manifest(converted.folder, kind="model")
    index = read_json(converted.folder / "model.safetensors.index.json")
    shards = sorted(path.name for path in converted.folder.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards and len(shards) > 1
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    stored = 0
    for shard in shards:
        tensors = load_file(converted.folder / shard)
        assert {name: shard for name in tensors}.items() <= index["weight_map"].items()
        assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
        stored += sum(tensor.nbytes for tensor in tensors.values())
    assert stored == index["metadata"]["total_size"]
    origin = manifest["converted_from"]
    assert origin["folder"] == "source" and origin["dropped_weights"] == {}
    assert origin["dropped_config_keys"]["vision_config.num_experts"] == "use_moe is off"
    assert not list(converted.folder.parent.glob(".*")), "temporary files are left"
