"""A LoRA adapter merged into its student before the export, and the proof that nothing else changed.

    student + adapter -> logits --------------------+
        |                                           | equal
        +-> merged (float32) -> saved -> logits ----+
                                  |
                                  +-> weights: the same names; but for the adapter's layers, the same bits

The student is in memory whole here, as PEFT merges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genrecal.core.errors import ModelError
from genrecal.data.inputs import encode_prompt
from genrecal.export.reference import Query
from genrecal.export.weights import CheckpointWeights
from genrecal.models.families import family_of, is_vision_encoder
from genrecal.models.processors import load_model, load_processor

CONFIG = "adapter_config.json"
# Relative to the largest logit: rounding of the adapter's extra products in float32.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What was proven of a merge, for the manifest."""

    adapter: str
    layers: int
    """Weights that the adapter changed."""
    logits_difference: float
    """Between the student with its adapter and the merged one, relative to the largest logit."""
    unchanged: int
    """Weights that are the student's, bit by bit; the vision encoder's are among them."""


@torch.no_grad()
def merge_adapter(student: Path, adapter: Path, folder: Path, queries: Sequence[Query]) -> Merge:
    """Write the student with its adapter merged to `folder`, in float32.

    Args:
        student: a plain Hugging Face folder.
        adapter: a folder in PEFT's layout, trained on that student.
        folder: a new folder.
        queries: texts and images; the logits at all positions of their prompts are compared.

    Raises:
        ModelError: `adapter` holds none, it does not fit the student, it changes the vision encoder or a
            layer that it does not name, or the merged student's logits differ.
    """
    from peft import PeftModel

    if not (adapter / CONFIG).is_file():
        raise ModelError(f"holds no LoRA adapter ({CONFIG})", where=adapter)
    base, processor = load_model(student, dtype=torch.float32), load_processor(student)
    try:
        model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    except Exception as error:  # whatever a foreign adapter makes PEFT raise
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"does not fit the student ({line})", where=adapter) from error
    targets = {
        f"{name.removeprefix('base_model.model.')}.weight"
        for name, module in model.named_modules()
        if hasattr(module, "merge") and hasattr(module, "base_layer")
    }
    before = [_logits(base, processor, query) for query in queries]
    merged = model.merge_and_unload()
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)
    del base, model, merged
    reread = load_model(folder, dtype=torch.float32)
    after = [_logits(reread, processor, query) for query in queries]
    difference = max(
        float((one - other).abs().max() / one.abs().max()) for one, other in zip(before, after, strict=True)
    )
    if not difference <= TOLERANCE:
        raise ModelError(
            f"merging it moves the logits by {difference:.2e} (limit {TOLERANCE:.0e})", where=adapter
        )
    unchanged = _require_untouched(reread, student, folder, targets)
    return Merge(
        adapter=adapter.resolve().name,
        layers=len(targets),
        logits_difference=difference,
        unchanged=unchanged,
    )


def _require_untouched(model: Any, student: Path, merged: Path, targets: set[str]) -> int:
    """How many weights are the student's own; the adapter's layers are all that may differ."""
    renaming = model._checkpoint_conversion_mapping
    old, new = CheckpointWeights(student, renaming), CheckpointWeights(merged, renaming)
    if leftover := sorted(set(new) ^ set(old)):
        raise ModelError(
            f"the merged student has other weights than the student: {leftover[0]}", where=merged
        )
    family = family_of(model.config)
    if seen := sorted(name for name in targets if is_vision_encoder(name, family)):
        raise ModelError(f"the adapter changes the vision encoder: {seen[0]}", where=merged)
    for name in set(new) - targets:
        if not torch.equal(new.read(name), old.read(name).to(torch.float32)):
            raise ModelError(f"merging changed '{name}', which the adapter does not name", where=merged)
    return len(set(new) - targets)


def _logits(model: Any, processor: Any, query: Query) -> Tensor:
    images = [part for part in query if isinstance(part, Image.Image)]
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in query
    ]
    prompt = encode_prompt(processor, [{"role": "user", "content": content}], images)
    ids_1S = prompt.ids[None]
    return model(
        input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S), use_cache=False, **prompt.vision
    ).logits
