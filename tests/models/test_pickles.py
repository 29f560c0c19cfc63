"""A pickle is not opened, whatever else would have been read."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from genrecal.core.errors import ModelError
from genrecal.export.student import find_student
from genrecal.models.processors import load_model
from tests.tiny import TinyPair


class Harm:
    """What an author may put into a pickle: reading it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_unread(tiny_pair: TinyPair, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "student"
    shutil.copytree(tiny_pair.student, folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / name).write_bytes(pickle.dumps({"w": Harm(tmp_path / "harm")}))
    for reads in (load_model, find_student):
        with pytest.raises(ModelError, match=r"holds its weights as pickles.*save_pretrained") as caught:
            reads(folder)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_safetensors_are_read_beside_a_pickle(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(tiny_pair.student, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Harm(tmp_path / "harm")}))
    load_model(folder)
    assert set(find_student(folder).provenance["weights"]) == {"model.safetensors"}
    assert not (tmp_path / "harm").exists()
