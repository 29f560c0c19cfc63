"""Sources that cannot be converted say why, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrecal.convert.checkpoint import convert
from genrecal.core.errors import ConfigError, GenrecalError, ModelError
from tests.convert.reference import DATA
from tests.tiny import TinyPair

INDEX = "model.safetensors.index.json"
Change = Callable[[Path], None]


def edit(file: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change a JSON file of a folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), encoding="utf-8")

    return apply


def config(**changes: Any) -> Change:
    """Set keys of config.json; `vision_config__a` is one of vision_config."""

    def change(content: dict[str, Any]) -> None:
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = content
            for parent in parents:
                node = node[parent]
            node[last] = value

    return edit("config.json", change)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    """Put all weights into one file, changed."""

    def apply(folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(shard)
            shard.unlink()
        (folder / INDEX).unlink()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def add(name: str, tensor: torch.Tensor) -> Change:
    return weights(lambda tensors: tensors.update({name: tensor}))


def drop(name: str) -> Change:
    return weights(lambda tensors: tensors.__delitem__(name))


def shorten(name: str) -> Change:
    """Take the first row off a weight."""
    return weights(lambda tensors: tensors.update({name: tensors[name][1:].clone()}))


def index(change: Callable[[dict[str, str]], Any]) -> Change:
    return edit(INDEX, lambda content: change(content["weight_map"]))


def tokenizer(**settings: Any) -> Change:
    return edit("tokenizer_config.json", lambda content: content.update(settings))


def preprocessor(**settings: Any) -> Change:
    return edit("preprocessor_config.json", lambda content: content.update(settings))


def remove(pattern: str) -> Change:
    def apply(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return apply


def write(name: str, content: bytes) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


def pickled(folder: Path) -> None:
    remove("*.safetensors*")(folder)
    write("pytorch_model.bin", b"")(folder)


QKV = "vision_model.encoder.layers.0.attn.qkv.weight"
WQKV = "language_model.model.layers.0.attention.wqkv.weight"
HEAD = "language_model.output.weight"
SHARD_3 = "model-00003-of-00007.safetensors"
EPS = {"vision_config__qk_normalization": True, "vision_config__layer_norm_eps": 1e-5}
PROBLEMS: list[tuple[Change, str]] = [
    (config(model_type="phi3_v"), "model type 'phi3_v', which is no known layout. Known are internvl_chat"),
    (config(llm_config=None), "has no llm_config"),
    (config(vision_config=None), "has no vision_config"),
    (config(llm_config__architectures=["Phi3ForCausalLM"]), "language model 'Phi3ForCausalLM' is not known"),
    (config(llm_config__rope_scaling={"type": "yarn", "factor": 2.0}), "rope_scaling has the type 'yarn'"),
    (config(llm_config__moe_config={"experts": 4}), "llm_config.moe_config is {'experts': 4}"),
    (config(vision_config__use_moe=True), "vision_config.use_moe is True"),
    (config(**EPS), "layer_norm_eps is 1e-05"),
    (config(select_layer=-4), "select_layer is -4; the native classes can express -1 alone"),
    (config(ps_version="v1"), "ps_version is 'v1'"),
    (config(use_llm_lora=16), "use_llm_lora is 16"),
    (config(use_thumbnail=False), "use_thumbnail is off"),
    (config(min_dynamic_patch=9), "takes 9 to 4 tiles"),
    (config(template="phi3-chat"), "conversation format 'phi3-chat' is not known"),
    (config(llm_config__vocab_size=500), "its tokenizer has 589 tokens, its embedding 500"),
    (config(llm_config__vocab_size=700), "the config says [700, 36]"),
    (config(llm_config__num_key_value_heads=3), "has 60 rows; the config says 72"),
    (config(llm_config__num_hidden_layers=1), "the model has no place for 'language_model.model.layers.1."),
    (config(llm_config__num_hidden_layers=3), "9 weights are missing, for instance what becomes"),
    (config(vision_config__qkv_bias=False), "no place for 'vision_model.encoder.layers.0.attn.qkv.bias'"),
    (preprocessor(image_mean=[0.5] * 3), "image_mean is [0.5, 0.5, 0.5]"),
    (tokenizer(tokenizer_class="T5Tokenizer"), "tokenizer is a 'T5Tokenizer'"),
    (remove("tokenizer_config.json"), "tokenizer_config.json: no such tokenizer file"),
    (remove("tokenizer.model"), "tokenizer.model: no such tokenizer file"),
    (remove("config.json"), "has no config.json"),
    (write("config.json", b"["), "is not valid JSON"),
    (write("config.json", b"[]"), "holds no object"),
    (remove("model-00002-*"), "1 of 7 shards are missing: model-00002-of-00007.safetensors. Download them"),
    (remove("*.safetensors*"), "has no safetensors weights. Download"),
    (pickled, "only pickled ones"),
    (write(INDEX, b'{"weight_map": {}}'), "names no weights"),
    (index(lambda files: files.pop(WQKV)), f"about 1 weights, for instance '{WQKV}'"),
    (index(lambda files: files.update(new=files[HEAD])), "for instance 'new'"),
    (write(SHARD_3, b"\x08\0\0\0\0\0\0\0{"), "is damaged"),
    (drop(HEAD), "1 weights are missing, for instance what becomes 'language_model.lm_head.weight'"),
    (shorten(WQKV), "has 59 rows; the config says 60"),
    (shorten(QKV), "has 95 rows, not three times 32"),
    (shorten("mlp1.1.bias"), "'mlp1.1.bias' gives [35], the config says [36]"),
    (add("mlp1.7.bias", torch.zeros(2)), "the weight 'mlp1.7.bias' is not known"),
    (add("vision_model.head", torch.zeros(2)), "the weight 'vision_model.head' is not known"),
    (add("other", torch.zeros(2)), "the weight 'other' is not known"),
    (add(HEAD, torch.zeros(589, 36, dtype=torch.int8)), "is stored as I8. Use the checkpoint that is not"),
]


@pytest.mark.parametrize(("change", "message"), PROBLEMS, ids=[message[:40] for _, message in PROBLEMS])
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, change: Change, message: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "internvl2_5_internlm2" / "source", source)
    change(source)
    with pytest.raises(GenrecalError) as caught:
        convert(source, tmp_path / "out")
    line = str(caught.value)
    assert message in line and "\n" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_one_file_without_an_index_and_tables_that_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "internvl2_5_internlm2" / "source", source)
    table = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    add(table, torch.ones(3))(source)
    (source / "LICENSE").write_text("MIT")
    assert convert(source, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["converted_from"]["dropped_weights"] == {table: "a table that the config determines"}
    assert (tmp_path / "out" / "LICENSE").read_text() == "MIT"


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_the_embedding(tmp_path: Path, tied: bool) -> None:
    source = tmp_path / "source"
    shutil.copytree(DATA / "internvl2_5_internlm2" / "source", source)
    drop(HEAD)(source)
    config(llm_config__tie_word_embeddings=tied)(source)
    if not tied:
        with pytest.raises(ModelError, match="lm_head"):
            convert(source, tmp_path / "out")
        return
    assert convert(source, tmp_path / "out")
    from genrecal.models.processors import load_model

    model = load_model(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_transformers_reads_is_left_alone(
    tiny_pair: TinyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tiny_pair.student, tiny_pair.teacher):  # a Qwen2-VL and a native InternVL
        assert not convert(folder, tmp_path / "out")
        assert "nothing to convert" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = DATA / "internvl2_5_internlm2" / "source"
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        convert(source, tmp_path / "out")
    with pytest.raises(ModelError, match="no such model folder"):
        convert(tmp_path / "nowhere", tmp_path / "new")


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ConfigError, match=r"needs 0\.0 GB, the disk has 0\.0 GB left"):
        convert(DATA / "internvl2_5_internlm2" / "source", tmp_path / "out")
