"""Prompts as the processors make them, and batches of them, for every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from genrecal.core.errors import DataError
from genrecal.data.batch import Batch, collate_one
from genrecal.data.inputs import AnswerForm, answer_form, blank_prompt, join_vision, placeholders
from genrecal.data.pair import chat_messages, tokenize
from genrecal.models.families import family_of
from genrecal.models.vlm import body_features, predicting_features
from tests.families import SAMPLES, WITHOUT_IMAGES, ReadFamily, conversation, noise

TURN_ENDS = {
    "gemma3": ("", "<end_of_turn>"),  # the tokenizer's own end is <eos>
    "idefics3": (" ", "<end_of_utterance>"),
    "internvl": ("", "<|im_end|>"),
    "internvl_llama": ("", "<|eot_id|>"),
    "llava_onevision": ("", "<|im_end|>"),
    "qwen2_5_vl": ("", "<|im_end|>"),
    "qwen2_vl": ("", "<|im_end|>"),
    "qwen3_vl": ("", "<|im_end|>"),
    "smolvlm": (" ", "<end_of_utterance>"),
}
RESERVED = {
    "gemma3": ("<image_soft_token>", "<start_of_image>"),
    "idefics3": ("<image>",),
    "internvl": ("<IMG_CONTEXT>", "<video>"),
    "internvl_llama": ("<IMG_CONTEXT>", "<video>"),
    "llava_onevision": ("<image>", "<video>"),
    "qwen2_5_vl": ("<|image_pad|>", "<|video_pad|>"),
    "qwen2_vl": ("<|image_pad|>", "<|video_pad|>"),
    "qwen3_vl": ("<|image_pad|>", "<|video_pad|>"),
    "smolvlm": ("<image>",),
}


def read(processor: Any, *texts: str, images: tuple[Any, ...] = ()) -> Any:
    return tokenize(conversation("typed", *texts), processor, list(images), max_tokens=1024)


def test_prompts_are_the_processors_own(family: ReadFamily) -> None:
    """The template rendered first and given to the processor by hand: the same ids and tensors."""
    processor = family.processor
    tokenizer = processor.tokenizer
    for (sample, images), row in zip(SAMPLES, family.rows, strict=True):
        text = processor.apply_chat_template(chat_messages(sample), add_generation_prompt=True)
        starts = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        own = processor(
            text=[text],
            images=[images] if images else None,
            add_special_tokens=not starts,  # a template that writes the first token itself
            return_tensors="pt",
        )
        assert row.question_ids.tolist() == own.pop("input_ids")[0].tolist()
        own.pop("attention_mask")
        for name, value in row.token_inputs.items():
            assert torch.equal(value, own.pop(name)[0])
        assert row.vision.keys() == own.keys() and bool(own) == bool(images)
        for name, value in row.vision.items():
            assert torch.equal(value, own[name])


def test_prompt_and_answer_are_the_templates_own_conversation(family: ReadFamily) -> None:
    """What the chat template makes of the whole conversation begins with our prompt and answer."""
    if family.name == "llava_onevision":
        pytest.skip("its template writes a past answer otherwise than it asks for the next one")
    processor = family.processor
    for place in WITHOUT_IMAGES:
        sample, row = SAMPLES[place][0], family.rows[place]
        reply = {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}
        whole = processor.apply_chat_template([*chat_messages(sample), reply])
        ids = processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
        ours = [*row.question_ids.tolist(), *row.answer_ids.tolist()]
        assert ids[: len(ours)] == ours
        # An end for each token, in characters of the answer: the space before it counts for none.
        assert len(row.answer_ends) == len(row.answer_ids)
        assert row.answer_ends[-2:].tolist() == [len(sample.answer), len(sample.answer) + 1]


def test_how_a_turn_ends(family: ReadFamily) -> None:
    form, tokenizer = answer_form(family.processor), family.processor.tokenizer
    lead, end = TURN_ENDS[family.name]
    assert form == AnswerForm(lead=lead, end_id=tokenizer.convert_tokens_to_ids(end))
    stops = family.model().generation_config.eos_token_id
    assert form.end_id in ([stops] if isinstance(stops, int) else stops)
    assert all(int(row.answer_ids[-1]) == form.end_id for row in family.rows)
    for (sample, _), row in zip(SAMPLES, family.rows, strict=True):
        assert tokenizer.decode(row.answer_ids, skip_special_tokens=True) == lead + sample.answer


def test_text_that_stands_for_an_image_is_an_error(family: ReadFamily) -> None:
    assert placeholders(family.processor) == RESERVED[family.name]
    for token in RESERVED[family.name]:
        for texts in (("a\n" + token, "b"), ("a", f"b {token}"), ("a", token, "c", "d")):
            if token == "<image>" and token not in texts[-1]:
                continue  # before the answer this is a place for an image, in every family
            with pytest.raises(DataError, match=r"sample 'typed' of here: has the text '<") as caught:
                read(family.processor, *texts)
            assert token in str(caught.value)
    assert len(read(family.processor, "a <b> < image> [IMG]", "<c>").question_ids) > 3


def test_images_and_their_places_must_be_as_many(family: ReadFamily) -> None:
    with pytest.raises(DataError, match="has 1 images and 2 places for them"):
        read(family.processor, "<image><image>\na", "b", images=(noise(30, 30, 1),))
    with pytest.raises(DataError, match="has 1 images and 0 places for them"):
        read(family.processor, "a", "b", images=(noise(30, 30, 1),))


def test_what_a_processor_cannot_read_is_one_line(family: ReadFamily) -> None:
    family.processor.chat_template, kept = "{{ nothing.at.all }}", family.processor.chat_template
    try:
        with pytest.raises(
            DataError, match=r"^sample 'typed' of here: \w+Processor cannot read it"
        ) as caught:
            read(family.processor, "a", "b")
    finally:
        family.processor.chat_template = kept
    assert "\n" not in str(caught.value)


def test_a_batch_joins_images_in_the_order_of_the_samples(family: ReadFamily) -> None:
    batch = family.batch()
    rows = [row.vision for row in family.rows]
    assert rows[1] == {} and rows[3] == {} and batch.vision.keys() == rows[0].keys() == rows[2].keys()
    for name, joined in batch.vision.items():
        first, second = rows[0][name], rows[2][name]
        assert len(joined) == len(first) + len(second)
        for start, given in ((0, first), (len(first), second)):
            part = joined[start : start + len(given)]
            inside = part[(slice(None), *(slice(size) for size in given.shape[1:]))]
            assert torch.equal(inside, given)
            assert part.abs().double().sum() == given.abs().double().sum()  # zeros beside it
    for row, ids, mask in zip(family.rows, batch.input_ids_BS, batch.attention_mask_BS, strict=True):
        length = len(row.question_ids) + len(row.answer_ids)
        assert int(mask.sum()) == length and mask[:length].all()
        assert ids[: len(row.question_ids)].tolist() == row.question_ids.tolist()
    for name, value in batch.token_inputs.items():
        assert value.shape == batch.input_ids_BS.shape
        for row, found in zip(family.rows, value, strict=True):
            assert found[: len(row.question_ids)].tolist() == row.token_inputs[name].tolist()
            assert not found[len(row.question_ids) :].any()


def test_ragged_tensors_are_padded_with_zeros() -> None:
    joined = join_vision([{"a": torch.ones(1, 2, 3)}, {}, {"a": 2 * torch.ones(2, 4, 1)}])["a"]
    assert joined.shape == (3, 4, 3) and joined.sum() == 6 + 16
    assert joined[0, :2].tolist() == [[1, 1, 1], [1, 1, 1]] and joined[2, :, 0].tolist() == [2, 2, 2, 2]
    assert join_vision([{}, {}]) == {}


def test_the_blank_image_lies_behind_the_shortest_sample(family: ReadFamily) -> None:
    blank = blank_prompt(family.processor)
    plain, batch = family.batch(WITHOUT_IMAGES), family.batch(WITHOUT_IMAGES, blank=blank)
    assert plain.vision == {} and batch.vision.keys() == blank.vision.keys()
    assert batch.attention_mask_BS.sum() == plain.attention_mask_BS.sum()
    assert batch.attention_mask_BS.sum(1).tolist() == plain.attention_mask_BS.sum(1).tolist()
    image = batch.input_ids_BS == family.processor.image_token_id
    assert image[1].sum() == (blank.ids == family.processor.image_token_id).sum() > 0
    assert not image[0].any() and not batch.attention_mask_BS[image].any()
    for name, value in batch.token_inputs.items():
        assert value[1].sum() == blank.token_inputs[name].sum()
    # A batch that has an image of its own gets none.
    mixed = family.batch((0, 1), blank=blank)
    for name, value in mixed.vision.items():
        assert torch.equal(value, family.rows[0].vision[name])
    assert int(mixed.attention_mask_BS.sum(1).max()) == mixed.input_ids_BS.shape[1]


def loss_and_gradients(model: Any, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    z_TD = predicting_features(body_features(model, batch), batch)[batch.answer_mask_BA]
    loss = torch.nn.functional.cross_entropy(
        model.get_output_embeddings()(z_TD), batch.answer_ids_BA[batch.answer_mask_BA], reduction="sum"
    )
    loss.backward()
    return loss.item(), {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def test_the_blank_image_is_read_and_moves_nothing(family: ReadFamily) -> None:
    """Whatever it shows, every gradient is bit for bit the same; and it is that of the batch without it."""
    model = family.model().train()
    runs: list[int] = []
    encoder = family_of(model.config).vision_encoder.rstrip(".")
    model.get_submodule(encoder).register_forward_hook(lambda *_: runs.append(1))
    plain, expected = loss_and_gradients(model, family.batch(WITHOUT_IMAGES))
    assert not runs
    blank = blank_prompt(family.processor)
    batch = family.batch(WITHOUT_IMAGES, blank=blank)
    loss, found = loss_and_gradients(model, batch)
    assert len(runs) == 1
    shown = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(0))
        if value.is_floating_point()
        else value
        for name, value in blank.vision.items()
    }
    other, moved = loss_and_gradients(model, replace(batch, vision=shown))
    assert loss == other and found.keys() == moved.keys()
    assert loss == pytest.approx(plain, abs=1e-5)
    for name, gradient in found.items():
        assert torch.equal(gradient, moved[name]), name
        without = expected.get(name, torch.zeros_like(gradient))
        assert torch.allclose(gradient, without, atol=1e-5 * float(without.abs().max()) + 1e-7), name


def test_without_a_blank_image_a_batch_of_text_has_no_pixels(family: ReadFamily) -> None:
    rows = [family.rows[place] for place in WITHOUT_IMAGES]
    assert collate_one(rows, padding=0).vision == {}
