"""`genrecal convert`: a checkpoint in its authors' layout -> a folder that transformers reads.

    config, conversation, tokenizer, preprocessing     small; all of it is read first
    weights on paper                                   names and shapes, against an empty native model
    weights                                            tensor by tensor, shard by shard
    manifest.json                                      last; without it the folder is unfinished

Nothing of the source is executed, and nothing is written before it is known that every weight has a place.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import GenerationConfig

from genrecal.convert.chat import chat_template, read_chat
from genrecal.convert.model_config import ConvertedConfig, convert_config
from genrecal.convert.padding import PaddingCheck
from genrecal.convert.plan import Plan, make_plan, stored_weights
from genrecal.convert.processor import convert_processor
from genrecal.convert.shards import ShardWriter
from genrecal.convert.source import LAYOUTS, Source, is_native, open_source
from genrecal.convert.tokenizer import IMAGE_TOKENS, convert_tokenizer
from genrecal.convert.weights import convert_weight
from genrecal.core.console import console, progress
from genrecal.core.errors import ConfigError, ModelError
from genrecal.core.files import atomic_folder, read_json, sha256_file
from genrecal.core.manifest import write_manifest

KIND = "model"
SHARD_BYTES = 2 << 30
MIB = 1 << 20
# Sampling settings of the authors' generation_config.json that go on; their `chat` sets the rest.
GENERATION_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")


def convert(source_folder: Path, output: Path, *, shard_bytes: int = SHARD_BYTES) -> bool:
    """Convert `source_folder` into `output`.

    Args:
        source_folder: a checkpoint as its authors published it.
        output: a folder that is not there yet.
        shard_bytes: size of a written shard; memory holds about two of them, or two of the largest tensor.

    Returns:
        False where transformers reads the source as it is; then nothing is written.

    Raises:
        ConfigError: `output` is there already, or the disk has no room.
        ModelError: an unknown layout, or a part of it that is missing, damaged or cannot be expressed.
    """
    if is_native(source_folder):
        console.print(f"{source_folder}: is read as it is, nothing to convert", soft_wrap=True)
        return False
    if output.exists():
        raise ConfigError("is there already", where=output, fix="Name another folder, or delete it")
    source = open_source(source_folder)
    chat = read_chat(source)
    template = chat_template(chat, image_token=IMAGE_TOKENS[source.layout]["context_image_token"])
    tokenizer = convert_tokenizer(source, chat, chat_template=template)
    converted = convert_config(source, image_token_id=tokenizer.context_image_token_id)
    if len(tokenizer) > converted.config.text_config.vocab_size:
        raise ModelError(
            f"its tokenizer has {len(tokenizer)} tokens, its embedding "
            f"{converted.config.text_config.vocab_size}",
            where=source.folder,
        )
    processor = convert_processor(source, tokenizer)
    plan = make_plan(stored_weights(source), source=source, config=converted.config)
    _check_room(output, plan)
    with atomic_folder(output) as folder:
        _write_weights(source, plan, folder, shard_bytes=shard_bytes)
        converted.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        _generation(source, tokenizer).save_pretrained(folder)
        for path in sorted(source.folder.glob("LICENSE*")):
            shutil.copy(path, folder / path.name)
        write_manifest(folder, kind=KIND, converted_from=_provenance(source, converted, plan))
    console.print(
        f"{output}: {plan.weights} weights, {plan.total_bytes / 1e9:.2f} GB, from {LAYOUTS[source.layout]}",
        soft_wrap=True,
    )
    for name, reason in {**plan.dropped, **converted.dropped}.items():
        console.print(f"left out: {name} ({reason})", soft_wrap=True)
    return True


def _check_room(output: Path, plan: Plan) -> None:
    existing = next(folder for folder in output.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < plan.total_bytes:
        raise ConfigError(
            f"needs {plan.total_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left", where=output
        )


def _write_weights(source: Source, plan: Plan, folder: Path, *, shard_bytes: int) -> None:
    writer = ShardWriter(folder, total_bytes=plan.total_bytes, shard_bytes=shard_bytes)
    padding = PaddingCheck(plan.shape.vision_width)
    with progress() as bar:
        total = max(1, plan.total_bytes // MIB)
        task = bar.add_task("weights (MiB)", total=total, note="")
        written = 0
        for number, (file, names) in enumerate(source.shards.items(), 1):
            with safe_open(source.folder / file, framework="pt") as shard:
                for name in names:
                    if name in plan.dropped:
                        continue
                    weight = shard.get_tensor(name)
                    padding.see(name, weight)
                    for native, tensor in convert_weight(name, weight, plan.shape).items():
                        writer.add(native, tensor)
                        written += tensor.nbytes
                    del weight
                    bar.update(task, completed=written // MIB, note=f"shard {number} of {len(source.shards)}")
        writer.finish()
        bar.update(task, completed=total)


def _generation(source: Source, tokenizer: Any) -> GenerationConfig:
    path = source.folder / "generation_config.json"
    given = read_json(path) if path.is_file() else {}
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **{key: given[key] for key in GENERATION_KEYS if given.get(key) is not None},
    )


def _provenance(source: Source, converted: ConvertedConfig, plan: Plan) -> dict[str, Any]:
    return {
        "folder": source.folder.resolve().name,
        "layout": LAYOUTS[source.layout],
        "language_model": source.config["llm_config"]["architectures"][0],
        "config_sha256": sha256_file(source.folder / "config.json"),
        "shards": {file: (source.folder / file).stat().st_size for file in source.shards},
        "dropped_weights": plan.dropped,
        "dropped_config_keys": converted.dropped,
    }
