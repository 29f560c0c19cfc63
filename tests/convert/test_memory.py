"""Converting takes memory for a few shards, however large the checkpoint is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.convert.reference import DATA

HIDDEN, INTERMEDIATE, LAYERS = 384, 2048, 24
SHARD_BYTES = 6_000_000
PROGRAM = """
import sys
from pathlib import Path
from genrecal.convert.checkpoint import convert

def kilobytes(field):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(field)]
    return int(line.split()[1])

small, large, output, shard_bytes = *map(Path, sys.argv[1:4]), int(sys.argv[4])
convert(small, output / "small", shard_bytes=shard_bytes)  # libraries and their caches
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
before = kilobytes("VmRSS")
convert(large, output / "large", shard_bytes=shard_bytes)
print("peak", 1024 * (kilobytes("VmHWM") - before))
"""


def write_large(folder: Path) -> int:
    """A checkpoint of many layers with the tiny one's tokenizer and vision encoder; returns its bytes."""
    shutil.copytree(DATA / "internvl2_5_qwen2" / "source", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["llm_config"]
    text |= {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    text["layer_types"] = ["full_attention"] * LAYERS
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kept: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        kept |= {name: part for name, part in load_file(shard).items() if name.startswith("vision_model.")}
        shard.unlink()
    width, keys = 4 * config["vision_config"]["hidden_size"], HIDDEN // 2
    shapes = {
        "mlp1.0.weight": (width,),
        "mlp1.0.bias": (width,),
        "mlp1.1.weight": (HIDDEN, width),
        "mlp1.1.bias": (HIDDEN,),
        "mlp1.3.weight": (HIDDEN, HIDDEN),
        "mlp1.3.bias": (HIDDEN,),
        "language_model.model.embed_tokens.weight": (text["vocab_size"], HIDDEN),
        "language_model.model.norm.weight": (HIDDEN,),
        "language_model.lm_head.weight": (text["vocab_size"], HIDDEN),
    }
    files = [kept | {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}]
    for layer in range(LAYERS):
        part = {
            "input_layernorm.weight": (HIDDEN,),
            "post_attention_layernorm.weight": (HIDDEN,),
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.q_proj.bias": (HIDDEN,),
            "self_attn.k_proj.weight": (keys, HIDDEN),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.weight": (keys, HIDDEN),
            "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
        files.append(
            {
                f"language_model.model.layers.{layer}.{name}": torch.ones(shape, dtype=torch.bfloat16)
                for name, shape in part.items()
            }
        )
    weight_map = {}
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_peak_memory_is_a_few_shards(tmp_path: Path) -> None:
    total = write_large(tmp_path / "large_source")
    assert total > 20 * SHARD_BYTES
    folders = [DATA / "internvl2_5_qwen2" / "source", tmp_path / "large_source", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, folders), str(SHARD_BYTES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = int(done.stdout.split("peak")[-1])
    written = sorted((tmp_path / "out" / "large").glob("*.safetensors"))
    assert len(written) > 20
    assert sum(path.stat().st_size for path in written) > 0.99 * total
    assert peak < 5 * SHARD_BYTES, f"{peak / 1e6:.0f} MB for shards of {SHARD_BYTES / 1e6:.0f} MB"
