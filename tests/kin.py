"""Students that are related to the tiny teacher: the same tokenizer, and more or less of the rest.

twin     the same token types, narrower and deeper, its embedding padded beyond the vocabulary (Qwen2.5's)
tiles    the same tokenizer, other image tokens: its tiles are larger
added    the twin with a token of its own added to the tokenizer, and one that the teacher lacks
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.tiny import CORPUS

PADDED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Kin:
    """Folders of the three students."""

    twin: Path
    tiles: Path
    added: Path


def write_kin(folder: Path) -> Kin:
    """Write the three with random weights below `folder`; a pure function of the code here."""
    import torch

    from genrecal.demo.pair import InternVLShape, write_internvl
    from genrecal.models.processors import load_model, load_processor

    kin = Kin(twin=folder / "twin", tiles=folder / "tiles", added=folder / "added")
    # Vocabulary, tile, patch and number of tiles as tiny.py's teacher has them.
    shape = InternVLShape(
        vocabulary=340,
        tile=48,
        patch=12,
        max_tiles=3,
        vision_hidden=24,
        vision_layers=1,
        vision_heads=2,
        hidden=32,
        layers=3,
        heads=2,
        key_value_heads=1,
        intermediate=64,
    )
    larger = shape.model_copy(update={"tile": 96})
    for path, one, seed in ((kin.twin, shape, 3), (kin.tiles, larger, 4), (kin.added, shape, 5)):
        write_internvl(path, CORPUS, shape=one, seed=seed)
    torch.manual_seed(6)
    twin = load_model(kin.twin)
    twin.resize_token_embeddings(twin.config.get_text_config().vocab_size + PADDED, mean_resizing=False)
    twin.save_pretrained(kin.twin)
    processor = load_processor(kin.added)
    processor.tokenizer.add_tokens(["<tool>", "<|own|>"])
    processor.save_pretrained(kin.added)
    return kin
