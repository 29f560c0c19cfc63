"""A transformers checkpoint, with a LoRA adapter where one is named, answered in left-padded batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.subjects.settings import fingerprint_of, folder_of, overrides_of, seed_of
from bench.types import Answer, Facts, Query, SubjectSpec
from genrecal.core import manifest
from genrecal.core.errors import DeviceError, ModelError
from genrecal.core.files import sha256_file

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


class CheckpointSubject:
    """A folder that `save_pretrained` wrote; one process, one device."""

    lanes = 1

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
        folder = folder_of(spec)
        self.processor = load_processor(folder)
        self.processor.tokenizer.padding_side = "left"
        # On a CPU in float32, where bfloat16 is slow and blurs the comparison with the float32 build.
        dtype = torch.float32 if spec.device == "cpu" else "auto"
        self.model = load_model(folder, dtype=dtype)
        if spec.adapter is not None:
            self.model = _adapted(self.model, spec.adapter)
        self.model = self.model.to("cpu" if spec.device == "cpu" else "cuda")
        self._overrides = overrides_of(spec, self.model.generation_config.max_new_tokens)
        if spec.greedy:
            # Named, so that transformers does not warn that greedy decoding leaves them unused.
            self._overrides |= {"temperature": None, "top_p": None, "top_k": None}
        generation = self.model.generation_config.to_diff_dict()
        generation.pop("transformers_version", None)
        generation |= self._overrides
        self.facts = Facts(
            kind="checkpoint",
            weights_bytes=sum(
                path.stat().st_size
                for of in (folder, spec.adapter)
                if of is not None
                for path in _weights(of)
            ),
            precision=str(self.model.dtype).removeprefix("torch."),
            device=spec.device,
            generation=generation,
        )
        files: dict[str, Any] = _hashes(folder)
        if spec.adapter is not None:
            files = {"checkpoint": files, "adapter": _hashes(spec.adapter)}
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

        torch.manual_seed(seed_of(self.spec.seed, queries))
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


def _adapted(model: Any, adapter: Path) -> Any:
    """The model with its adapter beside it, as trained: merged, bfloat16 would round it away in part."""
    from peft import PeftModel

    for name in ADAPTER:
        if not (adapter / name).is_file():
            raise ModelError(f"holds no LoRA adapter ({name})", where=adapter)
    try:
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    except Exception as error:  # whatever a foreign adapter makes PEFT raise
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"does not fit the checkpoint ({line})", where=adapter) from error


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix != ".md" and path.name != manifest.NAME
    }
