"""The three graphs of a build as ONNX Runtime sessions.

    an image's tensors -> vision_encoder -> image features
                                      | in the place of image tokens
    ids -> embed_tokens -> embeddings + -> decoder (keys and values of the past, cache.py) -> logits

Shapes: M image tokens, B rows, S new tokens, D hidden, V vocabulary, K positions with logits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.build import Build
from edge.cache import KeyValues, Layout, mask_of
from edge.device import Device, for_vision, require_made_for
from edge.providers import open_session
from genrecal.core.errors import BuildError, ConfigError, DeviceError

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")
# Tiles of one image that are encoded at a time: more would take more memory and no less time.
TILES = 4


class Sessions:
    """The loaded graphs.

    Args:
        build: an opened build.
        device: where the graphs run.
        threads: threads of one graph; None leaves the number to ONNX Runtime, which takes every core.

    Raises:
        BuildError: a graph cannot be loaded or is not of this contract.
        DeviceError: ONNX Runtime does not get the device, or the build is not made for it.
    """

    def __init__(self, build: Build, device: Device, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"'threads' is {threads}, it must be at least 1")
        require_made_for(device, target=build.manifest["target"], precision=build.precision)
        sees = for_vision(device, build.manifest["target"])
        self._vision = _load(build.vision_encoder, sees, threads, _engine(build) if sees.tensorrt else None)
        self._embed = _load(build.embed_tokens, device, threads)
        self._decoder = _load(build.decoder, device, threads)
        self._vision_inputs = {entry.name: entry for entry in self._vision.get_inputs()}
        _expect(self._vision, build.vision_encoder, {"pixel_values"}, "image_features", more=True)
        _expect(self._embed, build.embed_tokens, {"input_ids"}, "inputs_embeds")
        inputs = {entry.name: entry for entry in self._decoder.get_inputs()}
        past = tuple(name for name in inputs if _PAST.fullmatch(name))
        own = {"inputs_embeds", "attention_mask", "position_ids", "num_logits_to_keep"}
        _expect(self._decoder, build.decoder, own | set(past), "logits")
        present = tuple(name.replace("past_key_values", "present", 1) for name in past)
        outputs = {entry.name: entry for entry in self._decoder.get_outputs()}
        if set(present) - set(outputs) or not past:
            raise BuildError("its past and present do not match", where=build.decoder)
        self.rotary_axes = len(inputs["position_ids"].shape)
        """2: position_ids [B, S]; 3: position_ids [3, B, S]."""
        self._float_type = _type(inputs["inputs_embeds"])
        self._logits_type = _type(outputs["logits"])
        self.vocabulary = outputs["logits"].shape[2]
        if not isinstance(self.vocabulary, int):
            raise BuildError("its logits have no fixed number of tokens", where=build.decoder)
        self.layout = Layout(
            past=past,
            present=present,
            heads=tuple(inputs[name].shape[1] for name in past),
            channels=tuple(inputs[name].shape[3] for name in past),
            dtype=_type(inputs[past[0]]),
            memory=device.memory,
        )

    def encode_image(self, inputs: Mapping[str, NDArray[Any]], *, tilewise: bool) -> NDArray[Any]:
        """Image features_MD of one image.

        Args:
            inputs: its tensors by name; the graph takes those that it declares.
            tilewise: whether the features of a tile depend on that tile alone; then a few run at a time.
        """
        count = len(inputs["pixel_values"])
        step = TILES if tilewise else count
        features = []
        for start in range(0, count, step):
            given = (
                {name: value[start : start + step] for name, value in inputs.items()} if tilewise else inputs
            )
            feed = {name: _fed(entry, given[name]) for name, entry in self._vision_inputs.items()}
            (part,) = self._vision.run(["image_features"], feed)
            features.append(part.reshape(-1, part.shape[-1]))
        return features[0] if len(features) == 1 else np.concatenate(features)

    def embed(self, input_ids_BS: NDArray[np.int64]) -> NDArray[Any]:
        """Embeddings_BSD of token ids."""
        (embeds_BSD,) = self._embed.run(["inputs_embeds"], {"input_ids": input_ids_BS})
        return embeds_BSD

    def decode(
        self,
        embeds_BSD: NDArray[Any],
        positions_ABS: NDArray[np.int64],
        cache: KeyValues,
        *,
        row: int | None = None,
        keep: int = 1,
    ) -> NDArray[np.float32]:
        """logits_BKV of the last K = `keep` new tokens; keys and values go into `cache`.

        Args:
            embeds_BSD: the new tokens, behind those that `cache.lengths` counts; several new tokens at a
                time are for one row alone.
            positions_ABS: their positions, A = 1 or 3 axes.
            cache: has room for them; `lengths` counts them afterwards.
            row: this row of the cache alone, B = 1; None: all rows.
            keep: K.
        """
        rows, new = embeds_BSD.shape[:2]
        lengths = [cache.lengths[row]] if row is not None else cache.lengths
        lengths = [length + new for length in lengths]
        logits_BKV = np.empty((rows, keep, self.vocabulary), self._logits_type)
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds_BSD, dtype=self._float_type),
            "attention_mask": mask_of(lengths),
            "position_ids": np.ascontiguousarray(
                positions_ABS if self.rotary_axes == 3 else positions_ABS[0]
            ),
            "num_logits_to_keep": np.array(keep, np.int64),
        }
        binding = cache.binding(self._decoder, row)
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("logits", "cpu", 0, self._logits_type, logits_BKV.shape, logits_BKV.ctypes.data)
        self._decoder.run_with_iobinding(binding)
        if row is not None:
            cache.lengths[row] = lengths[0]
        else:
            cache.lengths[:] = lengths
        return logits_BKV.astype(np.float32, copy=False)


def _fed(entry: Any, value: NDArray[Any]) -> NDArray[Any]:
    """A tensor in the type and rank of a graph's input; some have a batch of images around the tiles."""
    missing = len(entry.shape) - value.ndim
    return value.reshape((1,) * missing + value.shape).astype(_type(entry), copy=False)


def _type(entry: Any) -> Any:
    if entry.type not in _DTYPES:
        raise BuildError(f"'{entry.name}' is a {entry.type}, which this runtime does not feed")
    return _DTYPES[entry.type]


def _engine(build: Build) -> Any:
    from edge.engines import build_engine  # the board's readers with it: for TensorRT alone

    return build_engine(build)


def _load(
    path: Path, device: Device, threads: int | None, engine: Any = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what is fatal is raised below
    options.intra_op_num_threads = threads or 0
    try:
        session = open_session(path, options, device, engine)
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


def _expect(
    session: onnxruntime.InferenceSession, path: Path, inputs: set[str], output: str, *, more: bool = False
) -> None:
    """Raise a BuildError unless a graph takes `inputs` (`more`: among others) and gives `output`."""
    found = {entry.name for entry in session.get_inputs()}
    known = inputs <= found if more else inputs == found
    if not known or output not in {entry.name for entry in session.get_outputs()}:
        raise BuildError(
            f"takes {', '.join(sorted(found))}: not the graph that this runtime expects",
            where=path,
            fix="Export it again with this genrecal",
        )
