"""A teacher's head without its body: the same weights and embeddings, whatever the family calls them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from genrecal.core.errors import ModelError
from genrecal.models.head_only import load_head
from tests.families import ReadFamily


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_and_embeddings_are_the_models_own(family: ReadFamily, dtype: torch.dtype) -> None:
    """Also where they are tied, and where the embedding scales what it gives."""
    whole = family.model().to(dtype)
    alone = load_head(family.folder, embeddings=True, dtype=dtype)
    ids_BS = torch.arange(12).reshape(3, 4)
    with torch.no_grad():
        embedded_BSD = whole.get_input_embeddings()(ids_BS)
        assert torch.equal(alone.get_input_embeddings()(ids_BS), embedded_BSD)
        assert torch.equal(
            alone.get_output_embeddings()(embedded_BSD), whole.get_output_embeddings()(embedded_BSD)
        )
    assert alone.config.get_text_config().hidden_size == embedded_BSD.shape[-1]
    assert not alone.training


def test_nothing_else_is_held(family: ReadFamily) -> None:
    for embeddings in (False, True):
        alone = load_head(family.folder, embeddings=embeddings, dtype=torch.float32)
        held = {id(parameter) for parameter in alone.parameters()}
        wanted = [alone.get_output_embeddings().weight]
        if embeddings:
            wanted.append(alone.get_input_embeddings().weight)
        assert held == {id(parameter) for parameter in wanted}


def test_loading_is_quiet_and_leaves_the_verbosity(
    family: ReadFamily, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.get_verbosity()
    load_head(family.folder, embeddings=False, dtype=torch.float32)
    assert logging.get_verbosity() == before
    assert "not used" not in capfd.readouterr().err


def test_a_folder_without_a_usable_config_is_refused(family: ReadFamily, tmp_path: Path) -> None:
    shutil.copytree(family.folder, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ModelError, match="its config cannot be loaded"):
        load_head(tmp_path / "model", embeddings=False, dtype=torch.float32)
