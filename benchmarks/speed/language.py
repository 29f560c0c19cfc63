"""The student's language model for engines that know no Qwen2-VL: a Qwen2 folder, and GGUF files of it.

    student/  -> language/  config.json and weights of a Qwen2ForCausalLM, tensor by tensor
    language/ -> f16.gguf   arch qwen2, no vocabulary -> q8_0.gguf, q4_0.gguf by llama.cpp's own quantizer

For text, the three rows of Qwen2-VL's positions are equal, so that its rotary positions are Qwen2's.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genrecal.core.errors import BenchError
from genrecal.core.files import read_json, write_json
from genrecal.export.weights import CheckpointWeights

SHARD_BYTES = 1 << 30
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
# Qwen2 in transformers -> qwen2 in GGUF
_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def write_language(student: Path, folder: Path) -> None:
    """The language model of a Qwen2-VL as a Qwen2ForCausalLM with tied embeddings."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config

    folder.mkdir(parents=True)
    text = read_json(student / "config.json")["text_config"]
    config = Qwen2Config(**{name: text[name] for name in _SAME}, tie_word_embeddings=True)
    config.architectures, config.dtype = ["Qwen2ForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    for name in _TOKENIZER:
        if (student / name).is_file():
            shutil.copyfile(student / name, folder / name)
    shard: dict[str, Any] = {}
    index: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in language_weights(student):
        shard[name] = tensor
        if sum(one.nbytes for one in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def language_weights(student: Path) -> Iterator[tuple[str, Any]]:
    """Names as Qwen2 has them, with their tensors."""
    weights = CheckpointWeights(student, {r"^model\.language_model\.": "model."})
    for name in weights:
        if name.startswith("model.") and ".visual." not in name:
            yield name, weights.read(name)


def write_gguf(language: Path, target: Path) -> None:
    """The same weights in float16 as a GGUF; norms and biases stay float32, as llama.cpp wants them."""
    import numpy as np
    import torch
    from gguf import GGUFWriter, LlamaFileType

    config = read_json(language / "config.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(target, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    weights = CheckpointWeights(language, {})
    types = {name: np.dtype(np.float16 if len(weights.shape(name)) > 1 else np.float32) for name in weights}
    for name, dtype in types.items():
        shape = weights.shape(name)
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(gguf_name(name), shape, dtype, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dtype in types.items():
        tensor = weights.read(name).to(torch.float32).numpy()
        writer.write_tensor_data(np.ascontiguousarray(tensor.astype(dtype)))
    writer.close()


def gguf_name(name: str) -> str:
    """The name of a Qwen2's weight in a GGUF."""
    if layer := _LAYER.fullmatch(name):
        number, part, kind = layer.groups()
        return f"blk.{number}.{_GGUF_NAMES[part]}.{kind}"
    stem, kind = name.rsplit(".", 1)
    return f"{_GGUF_NAMES[stem]}.{kind}"


def quantize_gguf(source: Path, target: Path, kind: str, threads: int) -> None:
    """Q8_0 or Q4_0 as `llama-quantize` makes them: with Q4_0, a tied embedding is Q6_K.

    Raises:
        BenchError: llama.cpp could not.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = threads
    unfinished = target.with_name(f".{target.name}")
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(unfinished).encode(), ctypes.byref(parameters)
    )
    if failed:
        raise BenchError(f"llama.cpp could not quantize it to {kind} ({failed})", where=source)
    unfinished.replace(target)
