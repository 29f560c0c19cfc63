import numpy as np
import pytest
import torch

from genrecal.core.errors import ModelError
from genrecal.demo import encoders
from genrecal.demo.datasets import corpus
from genrecal.demo.encoders import INKS, THINGS, WarmEncoder, token_labels, warm_encoder
from genrecal.demo.pair import InternVLShape, Qwen2VLShape, write_internvl, write_qwen2_vl
from genrecal.models.processors import load_model, load_processor

WRITERS = {"internvl": (write_internvl, InternVLShape()), "qwen2_vl": (write_qwen2_vl, Qwen2VLShape())}
ENCODERS = {
    "internvl": ("model.vision_tower.", "model.multi_modal_projector."),
    "qwen2_vl": ("model.visual.",),
}


def is_encoder(name, family):
    return name.startswith(ENCODERS[family])


@pytest.mark.parametrize("family", WRITERS)
def test_warming_changes_the_encoder_alone_and_it_learns(tmp_path, monkeypatch, family):
    writer, shape = WRITERS[family]
    folder = tmp_path / family
    writer(folder, list(corpus(0, 300)), shape=shape, seed=0)
    before = {name: value.clone() for name, value in load_model(folder).state_dict().items()}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(encoders, "HELD_OUT", 100)
    warm = warm_encoder(folder, seed=0, settings=WarmEncoder(steps=150), show=False)
    after = load_model(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.keys() == files.keys()
    # transformers adds the dtype to the config of a model that it has loaded.
    assert {name for name in files if found[name] != files[name]} == {"model.safetensors", "config.json"}
    for name, value in after.state_dict().items():
        if not is_encoder(name, family):
            assert torch.equal(value, before[name]), name
    changed = [name for name, value in after.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) > len([name for name in before if is_encoder(name, family)]) * 0.8
    # Chance among the filled cells is a few percent.
    assert warm > 0.12
    load_processor(folder)


def test_warming_repeats_by_seed(tmp_path):
    weights = []
    for name in ("one", "two"):
        write_qwen2_vl(tmp_path / name, list(corpus(0, 300)), shape=Qwen2VLShape(), seed=0)
        warm_encoder(tmp_path / name, seed=5, settings=WarmEncoder(steps=3, batch=4), show=False)
        weights.append(load_model(tmp_path / name).state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_labels_go_to_the_cell_under_the_centre_of_a_token():
    labels_RC = np.arange(9).reshape(3, 3)
    assert token_labels(labels_RC, 3, 3).tolist() == list(range(9))
    assert token_labels(labels_RC, 4, 4).reshape(4, 4)[:, 0].tolist() == [0, 3, 3, 6]
    wide_RC = np.arange(18).reshape(3, 6)
    assert token_labels(wide_RC, 4, 9).reshape(4, 9)[0].tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5]


def test_classes_are_things_and_inks():
    assert THINGS[0] == "empty" and INKS[0] == "none"
    assert {"star", "letter K", "digit 7", "half bar", "full bar"} <= set(THINGS)
    assert len(INKS) == 7


def test_another_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        warm_encoder(tmp_path / "nowhere", seed=0, settings=WarmEncoder(steps=1), show=False)
