"""What is scored: a transformers checkpoint or an edge build, behind one protocol.

    SubjectSpec -> open_subject -> Subject.answer(queries) -> answers

torch and transformers are imported by the checkpoint alone; a build is answered where they are not installed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.types import Answer, Facts, Query, Subject, SubjectSpec
from genrecal.core import manifest
from genrecal.core.errors import BenchError, DeviceError, ModelError
from genrecal.core.files import read_json, sha256_bytes, sha256_file

if TYPE_CHECKING:
    from edge.model import EdgeModel

# For models whose settings name no limit: transformers would stop after twenty tokens.
MAX_NEW_TOKENS = 512
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
DEVICES = ("cpu", "cuda", "jetson")


def open_subject(spec: SubjectSpec) -> Subject:
    """Open what stands at `spec.path`: a build by its manifest, else a checkpoint by its config.

    Raises:
        ModelError: it is neither.
        DeviceError: this machine has no such device.
        BuildError: the build is incomplete or altered.
    """
    if spec.device not in DEVICES:
        raise DeviceError(
            f"unknown device '{spec.device}'", where="--device", fix=f"Name one of {', '.join(DEVICES)}"
        )
    if not spec.path.is_dir():
        raise ModelError("no such folder", where=spec.path, fix="Name a checkpoint or a build")
    kind = _manifest_kind(spec.path)
    if kind == "build":
        return BuildSubject(spec)
    if not (spec.path / "config.json").is_file():
        what = f"is a folder of kind '{kind}'" if kind else "has neither a build's manifest nor a config.json"
        raise ModelError(what, where=spec.path, fix="Name a checkpoint (a run's student/) or a build")
    return CheckpointSubject(spec)


def fingerprint_of(spec: SubjectSpec, content: Mapping[str, Any], generation: Mapping[str, Any]) -> str:
    """SHA-256 of what decides a subject's answers."""
    settings = [spec.device, spec.greedy, spec.seed, dict(generation)]
    return sha256_bytes(json.dumps([content, settings], sort_keys=True).encode())


class CheckpointSubject:
    """A folder that `save_pretrained` wrote, answered in left-padded batches by transformers."""

    def __init__(self, spec: SubjectSpec) -> None:
        import torch

        from genrecal.models.processors import load_model, load_processor

        if spec.device == "jetson":
            from edge.device import jetson_board, require_device

            if jetson_board() is None:
                require_device("jetson")  # raises, and says how to run there
        if spec.device != "cpu" and not torch.cuda.is_available():
            raise DeviceError("torch sees no CUDA device", where=spec.device, fix="Use --device cpu")
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self.spec = spec
        self.processor = load_processor(spec.path)
        self.processor.tokenizer.padding_side = "left"
        # On a CPU in float32, where bfloat16 is slow and blurs the comparison with the float32 build.
        dtype = torch.float32 if spec.device == "cpu" else "auto"
        self.model = load_model(spec.path, dtype=dtype).to("cpu" if spec.device == "cpu" else "cuda")
        self._overrides = _overrides(spec, self.model.generation_config.max_new_tokens)
        if spec.greedy:
            # Named, so that transformers does not warn that greedy decoding leaves them unused.
            self._overrides |= {"temperature": None, "top_p": None, "top_k": None}
        generation = self.model.generation_config.to_diff_dict()
        generation.pop("transformers_version", None)
        generation |= self._overrides
        self.facts = Facts(
            kind="checkpoint",
            weights_bytes=sum(path.stat().st_size for path in _weights(spec.path)),
            precision=str(self.model.dtype).removeprefix("torch."),
            device=spec.device,
            generation=generation,
        )
        files = {
            path.name: sha256_file(path)
            for path in sorted(spec.path.iterdir())
            if path.is_file() and path.suffix != ".md" and path.name != manifest.NAME
        }
        self.fingerprint = fingerprint_of(spec, files, generation)
        self.chunk = spec.batch_size

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer `queries` as one batch; alone, a query also gets its time to the first token."""
        import torch
        from transformers.generation.streamers import BaseStreamer

        class FirstToken(BaseStreamer):
            """Notes when the first token came; the first call brings the prompt."""

            at: float | None = None
            calls = 0

            def put(self, value: Any) -> None:
                self.calls += 1
                if self.calls == 2:
                    self.at = time.perf_counter()

            def end(self) -> None:
                pass

        torch.manual_seed(_seed(self.spec.seed, queries))
        started = time.perf_counter()
        encoded = self.processor.apply_chat_template(
            [[{"role": "user", "content": _content(query)}] for query in queries],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            input_data_format="channels_last",  # or an image 1 or 3 pixels high is misread
        ).to(self.model.device, self.model.dtype)
        streamer = FirstToken() if len(queries) == 1 else None
        with torch.inference_mode():
            ids_BS = self.model.generate(**encoded, **self._overrides, streamer=streamer)
        generated_BT = ids_BS[:, encoded["input_ids"].shape[1] :].cpu()
        total_s = time.perf_counter() - started
        texts = self.processor.batch_decode(generated_BT, skip_special_tokens=True)
        prompt_lengths = encoded["attention_mask"].sum(dim=1).tolist()
        return [
            Answer(
                text=text.strip(),
                tokens=self._length(row.tolist()),
                prompt_tokens=prompt_tokens,
                first_token_s=streamer.at - started if streamer and streamer.at else None,
                total_s=total_s / len(queries),
            )
            for text, row, prompt_tokens in zip(texts, generated_BT, prompt_lengths, strict=True)
        ]

    def forget(self) -> None:
        """Nothing is kept."""

    def _length(self, ids: list[int]) -> int:
        """Generated tokens up to the end of turn; what follows it is padding."""
        end = self.model.generation_config.eos_token_id
        ends = {end} if isinstance(end, int) else set(end or ())
        return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


class BuildSubject:
    """An edge build, answered by the torch-free runtime one query at a time."""

    chunk = 1

    def __init__(self, spec: SubjectSpec) -> None:
        from edge.device import require_device
        from edge.model import EdgeModel

        require_device(spec.device)
        self.spec = spec
        self.model: EdgeModel = EdgeModel.open(
            spec.path,
            device=spec.device,
            threads=spec.threads,
            manifest_sha256=spec.manifest_sha256,
            trusted_keys=[Path(key) for key in spec.trusted_keys],
        )
        facts = self.model.build.manifest
        generation = dict(read_json(spec.path / "generation_config.json"))
        generation.pop("transformers_version", None)
        self._overrides = _overrides(spec, generation.get("max_new_tokens"))
        generation |= self._overrides
        self.facts = Facts(
            kind="build",
            weights_bytes=sum(
                entry["bytes"] for name, entry in facts["files"].items() if name.startswith("onnx/")
            ),
            precision=facts["precision"],
            device=spec.device,
            generation=generation,
        )
        self.fingerprint = fingerprint_of(spec, facts["files"], generation)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        answers = []
        for query in queries:
            started = time.perf_counter()
            reply = self.model.answer(query.parts, seed=_seed(self.spec.seed, [query]), **self._overrides)
            answers.append(
                Answer(
                    text=reply.text.strip(),
                    tokens=len(reply.token_ids),
                    prompt_tokens=reply.prompt_tokens,
                    first_token_s=reply.first_token_s,
                    total_s=time.perf_counter() - started,
                )
            )
        return answers

    def forget(self) -> None:
        self.model.forget()


def spec_to_json(spec: SubjectSpec) -> dict[str, Any]:
    return {**asdict(spec), "path": str(spec.path), "trusted_keys": list(spec.trusted_keys)}


def spec_from_json(content: Mapping[str, Any]) -> SubjectSpec:
    given = {**content, "path": Path(content["path"]), "trusted_keys": tuple(content["trusted_keys"])}
    return SubjectSpec(**given)


def _overrides(spec: SubjectSpec, own_limit: int | None) -> dict[str, Any]:
    """What differs from the model's own generation settings."""
    overrides: dict[str, Any] = {}
    if spec.max_new_tokens is not None or own_limit is None:
        overrides["max_new_tokens"] = spec.max_new_tokens or MAX_NEW_TOKENS
    if spec.greedy:
        overrides["do_sample"] = False
    return overrides


def _seed(seed: int, queries: Sequence[Query]) -> int:
    """A seed of these queries' own, so that a resumed run samples what an uninterrupted one does."""
    text = json.dumps([seed, *(query.id for query in queries)])
    return int(sha256_bytes(text.encode())[:15], 16)


def _content(query: Query) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in query.parts
    ]


def _weights(folder: Path) -> list[Path]:
    """The weight files of the first format that is there: a folder may hold the same weights in two."""
    for suffix in WEIGHTS:
        if files := sorted(folder.glob(f"*{suffix}")):
            return files
    raise ModelError("holds no weights", where=folder)


def _manifest_kind(folder: Path) -> str | None:
    path = folder / manifest.NAME
    if not path.is_file():
        return None
    content = read_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise BenchError("its manifest names no kind", where=folder)
    return kind
