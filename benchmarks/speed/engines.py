"""Each engine behind one protocol: the same prompt length, new tokens and threads, greedy, no end-of-turn.

Each is opened in a process of its own. Ids are random: with random weights every prompt costs the same. The
clock of a decode runs from the first new token to the last, so that no prefill is in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.speed.cases import IMAGE_PIXELS, Kind
from genrecal.core.errors import BenchError

SEED = 0
LETTER = "z"


class Engine(Protocol):
    def decode(self, prompt: int, new: int) -> float:
        """Seconds from the first of `new` tokens to the last, behind a prompt of `prompt` tokens."""
        ...


class VisionEngine(Engine, Protocol):
    def prefill(self, tokens: int) -> float:
        """Seconds from a prompt of so many tokens to the logits of its last one."""
        ...

    def vision(self, pixels: int = IMAGE_PIXELS) -> float:
        """Seconds of the vision encoder for a square image."""
        ...


class Edge:
    """A build through edge's own runtime, by the calls that a user makes."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        from edge.model import EdgeModel

        self.model = EdgeModel.open(folder, threads=threads, verify=False)

    def decode(self, prompt: int, new: int) -> float:
        return self._answer((self._text(prompt),), new).decode_s

    def prefill(self, tokens: int) -> float:
        return self._answer((self._text(tokens),), 1).prefill_s

    def vision(self, pixels: int = IMAGE_PIXELS) -> float:
        return self._answer((_image(pixels), "what"), 1).vision_s

    def _answer(self, query: Any, new: int) -> Any:
        self.model.forget()
        answer = self.model.answer(query, max_new_tokens=new, do_sample=False, eos_token_ids=())
        if len(answer.token_ids) != new:
            raise BenchError(f"gave {len(answer.token_ids)} tokens in the place of {new}")
        return answer

    def _text(self, tokens: int) -> str:
        """A text whose prompt, the chat template with it, has exactly so many tokens."""
        # No word of the small tokenizer's corpus has this letter, so that each is a token of its own.
        text = LETTER * (tokens + 1 - len(self.model.prompt((LETTER,)).ids_S))
        if len(self.model.prompt((text,)).ids_S) == tokens:
            return text
        raise BenchError(f"found no text of {tokens} tokens", where=self.model.build.folder)


class Torch:
    """transformers' `generate` with its cache."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.folder = folder

    def decode(self, prompt: int, new: int) -> float:
        import torch

        stamps = _Stamps()
        ids_BS = torch.as_tensor(_ids(self.model.config.text_config.vocab_size, prompt))[None]
        self.model.generate(
            input_ids=ids_BS,
            attention_mask=torch.ones_like(ids_BS),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=stamps,
        )
        times = stamps.times[1:]  # the first call brings the prompt
        if len(times) != new:
            raise BenchError(f"gave {len(times)} tokens in the place of {new}", where=self.folder)
        return times[-1] - times[0]

    def prefill(self, tokens: int) -> float:
        import torch

        ids_BS = torch.as_tensor(_ids(self.model.config.text_config.vocab_size, tokens))[None]
        with torch.inference_mode():
            return _timed(lambda: self.model(input_ids=ids_BS, use_cache=True, logits_to_keep=1))

    def vision(self, pixels: int = IMAGE_PIXELS) -> float:
        import torch
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(self.folder, use_fast=False)
        given = processor(images=_image(pixels), return_tensors="pt")
        values = given["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            return _timed(lambda: self.model.get_image_features(values, given["image_grid_thw"]))


class Genai:
    """onnxruntime-genai on what its model builder wrote."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import onnxruntime_genai

        self.api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self.model = onnxruntime_genai.Model(config)
        settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self.vocabulary = settings["model"]["vocab_size"]

    def decode(self, prompt: int, new: int) -> float:
        parameters = self.api.GeneratorParams(self.model)
        # min_length keeps the end-of-turn token from being chosen.
        parameters.set_search_options(do_sample=False, max_length=prompt + new, min_length=prompt + new)
        generator = self.api.Generator(self.model, parameters)
        generator.append_tokens(_ids(self.vocabulary, prompt).astype(np.int32))
        times = []
        for _ in range(new):
            generator.generate_next_token()
            times.append(time.perf_counter())
        return times[-1] - times[0]


class Llama:
    """llama.cpp by its C interface: no vocabulary, no sampler but the largest logit."""

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise BenchError("llama.cpp cannot load it", where=file)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 1024, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, prompt: int, new: int) -> float:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        tokens, times = _ids(self.vocabulary, prompt).tolist(), []
        for _ in range(new):
            array = (self.api.llama_token * len(tokens))(*tokens)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))):
                raise BenchError("llama.cpp failed to decode")
            logits = self.api.llama_get_logits_ith(self.context, -1)
            tokens = [int(np.argmax(np.ctypeslib.as_array(logits, (self.vocabulary,))))]
            times.append(time.perf_counter())
        return times[-1] - times[0]


ENGINES: dict[Kind, Callable[[Path, str, int], Engine]] = {
    "edge": Edge,
    "torch": Torch,
    "genai": Genai,
    "llama": Llama,
}


class _Stamps:
    """A streamer of transformers that keeps the times alone."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _ids(vocabulary: int, count: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(1, vocabulary, count)


def _image(pixels: int) -> Any:
    from PIL import Image

    values = np.random.default_rng(SEED).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
    return Image.fromarray(values)
