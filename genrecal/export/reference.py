"""What torch in float32 makes of queries: what graphs are fed, and what they must give.

    query -> the family's processor -> torch -> greedy answer; its embeddings, positions and logits

All is taken from the one generation of the answer. What torch computed on the way also says whether float16
could hold it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from genrecal.core.errors import BuildError
from genrecal.data.inputs import encode_prompt
from genrecal.models.vlm import text_body

FLOAT16_LARGEST = 65504.0
Query = Sequence[str | Image.Image]
Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What torch makes of one query and its own greedy answer to it."""

    feeds: list[Feed]
    """What the vision encoder's graph is fed, a dict a call; none without images."""
    ids_S: NDArray[np.int64]
    """Prompt and answer. All below are without the answer's last token, which nothing is asked after."""
    prompt: int
    is_image_S: NDArray[np.bool_]
    embeds_SD: NDArray[np.float32]
    positions: NDArray[np.int64]
    """As the decoder's graph takes them: [3, 1, S] or [1, S]."""
    logits_AV: NDArray[np.float32]
    """Row i predicts token i of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The largest absolute activation, and the module that it was seen at."""

    largest: float
    where: str


def reference_of(
    model: Any, processor: Any, queries: Sequence[Query], *, max_new_tokens: int
) -> tuple[list[Reference], Range]:
    """Answer every query with torch, and keep what graphs are compared with.

    Args:
        model: a float32 transformers model in evaluation mode; its weights may lie on disk.
        processor: its processor.
        queries: texts and images in the order of the prompt.
        max_new_tokens: of an answer.

    Returns:
        A reference for each query, and the range of all activations.
    """
    with torch.no_grad(), _watch_range(model) as found:
        references = [_refer(model, processor, query, max_new_tokens) for query in queries]
    where = max(found, key=lambda name: found[name])
    return references, Range(largest=found[where], where=where)


def require_float16(found: Range, *, where: Path) -> None:
    """The gate before float16 graphs.

    Raises:
        BuildError: an activation is larger than float16 can hold.
    """
    if not found.largest < FLOAT16_LARGEST:
        raise BuildError(
            f"an activation at '{found.where}' reaches {found.largest:.3g}, and float16 ends at 65504",
            where=where,
            fix="Export for the CPU, with --fp32 or --int8: GPUs compute every other precision in float16",
        )


def _refer(model: Any, processor: Any, query: Query, max_new_tokens: int) -> Reference:
    images = [part for part in query if isinstance(part, Image.Image)]
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in query
    ]
    prompt = encode_prompt(processor, [{"role": "user", "content": content}], images)
    settings = copy.deepcopy(model.generation_config)
    settings.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    settings.update(max_new_tokens=max_new_tokens, max_length=None)
    settings.update(return_dict_in_generate=True, output_logits=True)
    embeds_1SD: list[Tensor] = []
    positions: list[Tensor] = []

    def take(_: nn.Module, __: Any, given: dict[str, Any]) -> None:
        embeds_1SD.append(given["inputs_embeds"])
        # Four rows: the first one is the place in the text, which serves packed batches.
        positions.append(given["position_ids"][-3:])

    hook = text_body(model).register_forward_pre_hook(take, with_kwargs=True)
    try:
        generated = model.generate(
            input_ids=prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids)[None],
            generation_config=settings,
            **prompt.vision,
        )
    finally:
        hook.remove()
    ids_S, length = generated.sequences[0], len(prompt.ids)
    # The answer may hold image tokens too; they are text like any other there.
    is_image_S = (ids_S == model.config.image_token_id) & (torch.arange(len(ids_S)) < length)
    return Reference(
        feeds=FEEDS[model.config.model_type](prompt.vision, model.config) if prompt.vision else [],
        ids_S=ids_S.numpy(),
        prompt=length,
        is_image_S=is_image_S[:-1].numpy(),
        embeds_SD=torch.cat(embeds_1SD, 1)[0].numpy(),
        positions=torch.cat(positions, -1).numpy(),
        logits_AV=torch.cat(generated.logits).float().numpy(),
    )


@contextmanager
def _watch_range(model: Any) -> Iterator[dict[str, float]]:
    """While this is open, the largest absolute value that each module takes or gives, by its name."""
    found: dict[str, float] = {"nothing": 0.0}

    def watch(name: str) -> Callable[..., None]:
        def note(_: nn.Module, taken: Any, given: Any) -> None:
            values = (*taken, *(given if isinstance(given, tuple) else (given,)))
            for value in values:
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    found[name] = max(found.get(name, 0.0), float(value.abs().max()))

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _arrays(inputs: Any, *names: str) -> Feed:
    return {name: inputs[name].numpy() for name in names}


def _qwen_feeds(inputs: Any, config: Any) -> list[Feed]:
    return [_arrays(inputs, "pixel_values", "image_grid_thw")]


def _internvl_feeds(inputs: Any, config: Any) -> list[Feed]:
    return [_arrays(inputs, "pixel_values")]


def _idefics3_feeds(inputs: Any, config: Any) -> list[Feed]:
    feed = _arrays(inputs, "pixel_values", "pixel_attention_mask")
    return [{name: value.reshape(-1, *value.shape[2:]) for name, value in feed.items()}]


def _llava_feeds(inputs: Any, config: Any) -> list[Feed]:
    """The processor pads images to the most tiles; only one that stands alone is cut."""
    feeds = []
    for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
        tiles = 1
        if len(inputs["image_sizes"]) == 1:
            tile = config.vision_config.image_size
            tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, tile)
        feeds.append({"pixel_values": pixels[:tiles].numpy(), "image_sizes": size[None].numpy()})
    return feeds


# model_type -> from the processor's output to what the vision encoder's graph is fed
FEEDS: dict[str, Callable[[Any, Any], list[Feed]]] = {
    "idefics3": _idefics3_feeds,
    "internvl": _internvl_feeds,
    "llava_onevision": _llava_feeds,
    "qwen2_5_vl": _qwen_feeds,
    "qwen2_vl": _qwen_feeds,
    "smolvlm": _idefics3_feeds,
}
