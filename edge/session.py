"""The three graphs of a build as ONNX Runtime sessions, and the cache of keys and values between steps.

    pixels -> vision_encoder -> image features
                                      | in the place of image tokens
    ids -> embed_tokens -> embeddings + -> decoder (past) -> logits, present = the next step's past

Shapes: N patches, E values of a patch, M image tokens, S new tokens, P past tokens, D hidden, V vocabulary.
The batch is always one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.build import Build
from edge.device import Device
from genrecal.core.errors import BuildError, ConfigError, DeviceError

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keys and values of the tokens so far, one tensor an input of the decoder, in the device's memory."""

    length: int
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one run of the decoder gives."""

    logits_SV: NDArray[np.float32]
    cache: Cache


class Sessions:
    """The loaded graphs.

    Args:
        build: an opened build.
        device: where the graphs run.
        threads: threads of one graph; None leaves the number to ONNX Runtime, which takes every core.

    Raises:
        BuildError: a graph cannot be loaded or is not of this contract.
        DeviceError: ONNX Runtime does not get the device.
    """

    def __init__(self, build: Build, device: Device, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"'threads' is {threads}, it must be at least 1")
        self._device = device
        self._vision = _load(build.vision_encoder, device, threads)
        self._embed = _load(build.embed_tokens, device, threads)
        self._decoder = _load(build.decoder, device, threads)
        _expect(self._vision, build.vision_encoder, {"pixel_values", "image_grid_thw"}, "image_features")
        _expect(self._embed, build.embed_tokens, {"input_ids"}, "inputs_embeds")
        inputs = {entry.name: entry for entry in self._decoder.get_inputs()}
        self._past = [name for name in inputs if _PAST.fullmatch(name)]
        own = {"inputs_embeds", "attention_mask", "position_ids"}
        _expect(self._decoder, build.decoder, own | set(self._past), "logits")
        self._present = [name.replace("past_key_values", "present", 1) for name in self._past]
        missing = set(self._present) - {entry.name for entry in self._decoder.get_outputs()}
        if missing or not self._past:
            raise BuildError("its past and present do not match", where=build.decoder)
        self._pixel_type = _DTYPES[self._vision.get_inputs()[0].type]
        self._float_type = _DTYPES[inputs["inputs_embeds"].type]
        # An empty past has no tokens; heads and head size stand in the graph.
        self._empty = [
            np.zeros((1, inputs[name].shape[1], 0, inputs[name].shape[3]), _DTYPES[inputs[name].type])
            for name in self._past
        ]

    def encode_images(
        self, pixel_values_NE: NDArray[np.float32], grid_I3: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Image features_MD of preprocessed images; without images, no graph runs."""
        if not len(grid_I3):
            return np.zeros((0, 0), np.float32)
        pixels = pixel_values_NE.astype(self._pixel_type, copy=False)
        (features_MD,) = self._vision.run(
            ["image_features"], {"pixel_values": pixels, "image_grid_thw": grid_I3}
        )
        return features_MD

    def embed(self, input_ids_S: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings_SD of token ids."""
        (embeds_1SD,) = self._embed.run(["inputs_embeds"], {"input_ids": input_ids_S[None]})
        return embeds_1SD[0]

    def empty_cache(self) -> Cache:
        """The cache before the first token."""
        values = tuple(
            onnxruntime.OrtValue.ortvalue_from_numpy(value, self._device.memory, 0) for value in self._empty
        )
        return Cache(length=0, values=values)

    def decode(self, embeds_SD: NDArray[np.float32], positions_3S: NDArray[np.int64], cache: Cache) -> Step:
        """Run the decoder on S new tokens after those in `cache`; keys and values stay on the device."""
        length = cache.length + len(embeds_SD)
        binding = self._decoder.io_binding()
        embeds_1SD = np.ascontiguousarray(embeds_SD[None], dtype=self._float_type)
        binding.bind_cpu_input("inputs_embeds", embeds_1SD)
        binding.bind_cpu_input("attention_mask", np.ones((1, length), np.int64))
        binding.bind_cpu_input("position_ids", np.ascontiguousarray(positions_3S[:, None]))
        for name, value in zip(self._past, cache.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._present:
            binding.bind_output(name, self._device.memory)
        self._decoder.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        logits_SV = logits.numpy()[0].astype(np.float32, copy=False)
        return Step(logits_SV=logits_SV, cache=Cache(length=length, values=tuple(present)))


def _load(path: Path, device: Device, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what is fatal is raised below
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(device.providers))
    except Exception as error:  # each of ONNX Runtime's errors is a class of its own below Exception
        raise BuildError(
            f"onnxruntime cannot load it ({' '.join(str(error).split())[:300]})", where=path
        ) from error
    # Where the first provider does not start, ONNX Runtime goes on with the next one and only logs it.
    if session.get_providers()[0] != device.providers[0]:
        raise DeviceError(
            f"onnxruntime could not start {device.providers[0]} and fell back to the CPU",
            where=path.name,
            fix="Check the GPU's driver and that its CUDA and cuDNN fit this onnxruntime",
        )
    return session


def _expect(session: onnxruntime.InferenceSession, path: Path, inputs: set[str], output: str) -> None:
    found = {entry.name for entry in session.get_inputs()}
    if found != inputs or output not in {entry.name for entry in session.get_outputs()}:
        raise BuildError(
            f"takes {', '.join(sorted(found))}: not the graph that this runtime expects", where=path
        )
