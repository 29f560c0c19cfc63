"""The warm start of an image encoder: before it meets a question, it learns what stands in every cell.

    drawing --image processor--> pixels --encoder and its output layer--> features_TD
            --linear--> logits_TN (what: a star, the letter K, half a bar, ...) and logits_TI (in which ink)

T is the number of image tokens, D the width of the language model. Every real VLM starts from a trained image
encoder; in the demo's minutes nothing but single objects is learned without. What and ink are told apart
because a shape is then learned from drawings in every colour. The linear head is thrown away; the language
model stays as it was made.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from genrecal.core.config import Config
from genrecal.core.console import progress
from genrecal.core.errors import ModelError
from genrecal.core.files import atomic_folder
from genrecal.demo.datasets import WIDE_SHARE, Drawing, drawings
from genrecal.demo.drawings import CLASSES, COLORS, ROWS, compose, render
from genrecal.models.processors import load_model, load_processor

# A class of cells is a thing and an ink; letters and digits, always black, have none to learn.
_INKS = [next((word for word in name.split() if word in COLORS), "none") for name in CLASSES]
_THINGS = [
    name.removeprefix(f"{ink} ").replace(f" {ink} ", " ") for name, ink in zip(CLASSES, _INKS, strict=True)
]
THINGS, INKS = tuple(dict.fromkeys(_THINGS)), tuple(dict.fromkeys(_INKS))
_THING_OF_CLASS = torch.tensor([THINGS.index(name) for name in _THINGS])
_INK_OF_CLASS = torch.tensor([INKS.index(name) for name in _INKS])

# Empty cells are most cells; they would drown the rest.
EMPTY_WEIGHT = 0.3
INK_WEIGHT = 0.5
# Half of the images fill most of their cells: more to learn from one image than in the scenes asked about.
MOSAIC_SHARE = 0.5
HELD_OUT = 500


class WarmEncoder(Config):
    """How long and how fast an encoder is warmed."""

    steps: int = 1200
    batch: int = 16
    """Images in a step; many small steps learn more from as many images than few large ones."""
    learning_rate: float = 8e-3
    """Peak of AdamW's rate: linear warm-up over a twentieth of the steps, then a cosine to zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """A batch as the encoder takes it, with the class of the cell under the centre of every image token."""

    inputs: dict[str, torch.Tensor]
    labels_T: torch.Tensor  # the tokens of all images, one after the other


def warm_encoder(folder: Path, *, seed: int, settings: WarmEncoder, show: bool = True) -> float:
    """Train the image encoder of a model folder on dense labels and save the folder whole again.

    What turns patches into image tokens (InternVL's projector, Qwen2-VL's merger) is trained along: it is
    the encoder's output layer. The language model is not touched.

    Args:
        folder: an InternVL or Qwen2-VL with its processor, as `save_pretrained` writes it.
        seed: of the drawings and of the head; drawings of the "pretrain" split.
        settings: steps, batch and learning rate.
        show: print a progress bar.

    Returns: the share of image tokens over non-empty cells whose class is right, on drawings that the
        encoder did not see.

    Raises:
        ModelError: the folder holds no model of these families.
    """
    processor, model = load_processor(folder), load_model(folder)
    encoder = _encoder_parts(model, folder)
    torch.manual_seed(seed)
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(THINGS) + len(INKS))
    model.requires_grad_(False)
    for part in encoder:
        part.requires_grad_(True)
    parameters = [*(p for part in encoder for p in part.parameters()), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    model.train()
    batches = _batches(processor, model, _dense_drawings(seed), settings.batch)
    with progress(disable=not show) as display:
        task = display.add_task(f"warm-up of {folder.name}", total=settings.steps, note="")
        for _ in range(settings.steps):
            batch = next(batches)
            loss = _loss(head(image_features(model, batch.inputs)), batch.labels_T)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            display.update(task, advance=1, note=f"loss {loss.item():.3f}")
    model.eval()
    accuracy = _accuracy(processor, model, head, seed)
    model.requires_grad_(True)
    with atomic_folder(folder) as target:
        # Processor and tokenizer stay byte by byte what they were.
        shutil.copytree(folder, target, dirs_exist_ok=True)
        model.save_pretrained(target)
    return accuracy


def image_features(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The image tokens that the language model reads, of all images one after the other: T x D."""
    features = model.get_image_features(**inputs)
    if isinstance(features, torch.Tensor):
        return features.flatten(0, 1)
    return torch.cat(tuple(features))


def token_labels(labels_RC: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The class of the cell under the centre of every token of a grid, row by row: rows * columns."""
    cell_rows = ((np.arange(rows) + 0.5) * labels_RC.shape[0] / rows).astype(int)
    cell_columns = ((np.arange(columns) + 0.5) * labels_RC.shape[1] / columns).astype(int)
    return labels_RC[np.ix_(cell_rows, cell_columns)].reshape(-1)


def _encoder_parts(model: Any, folder: Path) -> tuple[torch.nn.Module, ...]:
    kind = model.config.model_type
    if kind == "internvl":
        return (model.model.vision_tower, model.model.multi_modal_projector)
    if kind == "qwen2_vl":
        return (model.model.visual,)
    raise ModelError(f"is of the family '{kind}'", where=folder, fix="The demo warms internvl and qwen2_vl")


def _loss(logits_TX: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the thing and of its ink; their logits stand side by side."""
    logits_TN, logits_TI = logits_TX.split((len(THINGS), len(INKS)), dim=-1)
    weights_N, weights_I = torch.ones(len(THINGS)), torch.ones(len(INKS))
    weights_N[0] = weights_I[0] = EMPTY_WEIGHT
    thing = F.cross_entropy(logits_TN, _THING_OF_CLASS[labels_T], weights_N)
    return thing + INK_WEIGHT * F.cross_entropy(logits_TI, _INK_OF_CLASS[labels_T], weights_I)


def _right(logits_TX: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
    """Whether thing and ink are both right."""
    logits_TN, logits_TI = logits_TX.split((len(THINGS), len(INKS)), dim=-1)
    thing_T, ink_T = logits_TN.argmax(-1), logits_TI.argmax(-1)
    return (thing_T == _THING_OF_CLASS[labels_T]) & (ink_T == _INK_OF_CLASS[labels_T])


def _dense_drawings(seed: int) -> Iterator[Drawing]:
    rng = random.Random(f"dense {seed}")
    for drawing in drawings(seed, "pretrain"):
        yield drawing
        if rng.random() < MOSAIC_SHARE / (1 - MOSAIC_SHARE):
            layout = compose("mosaic", rng, wide=rng.random() < WIDE_SHARE / 2, split="pretrain")
            yield Drawing(image=render(layout, rng), layout=layout)


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _batches(processor: Any, model: Any, stream: Iterator[Drawing], size: int) -> Iterator[Pixels]:
    """Batches of drawings, all of one width."""
    waiting: dict[int, list[Drawing]] = {}
    for drawing in stream:
        # A tile of InternVL sees three columns of cells whether the image is square or wide: squares do.
        if model.config.model_type == "internvl" and drawing.layout.columns != ROWS:
            continue
        alike = waiting.setdefault(drawing.layout.columns, [])
        alike.append(drawing)
        # A wide image has more tokens: half as many make a batch.
        if len(alike) >= size // (drawing.layout.columns // ROWS):
            yield _pixels(processor, model, alike)
            waiting[drawing.layout.columns] = []


def _pixels(processor: Any, model: Any, batch: Sequence[Drawing]) -> Pixels:
    encoded = processor.image_processor(images=[drawing.image for drawing in batch], return_tensors="pt")
    if model.config.model_type == "internvl":
        inputs = {"pixel_values": encoded["pixel_values"]}
        edge = math.isqrt(processor.image_seq_length)
        grids = [(edge, edge)] * len(batch)
    else:
        inputs = {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
        merge = processor.image_processor.merge_size
        grids = [(height // merge, width // merge) for _, height, width in encoded["image_grid_thw"].tolist()]
    labels = [
        token_labels(drawing.layout.labels_RC, *grid) for drawing, grid in zip(batch, grids, strict=True)
    ]
    return Pixels(inputs=inputs, labels_T=torch.from_numpy(np.concatenate(labels)))


@torch.no_grad()
def _accuracy(processor: Any, model: Any, head: torch.nn.Module, seed: int) -> float:
    """On drawings of the "distill" split: other images, and other handwritten digits."""
    right = total = 0
    batches = _batches(processor, model, drawings(seed, "distill"), 100)
    for _ in range(HELD_OUT // 100):
        batch = next(batches)
        right_T = _right(head(image_features(model, batch.inputs)), batch.labels_T)
        filled_T = batch.labels_T != 0
        right += int(right_T[filled_T].sum())
        total += int(filled_T.sum())
    return right / total
