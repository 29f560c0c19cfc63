"""The one object that the command line, the benchmarks and a user's own program ask questions.

model = EdgeModel.open(Path("build"))
model.answer((image, "How many circles?")).text
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.build import Build, open_build
from edge.device import Device, require_device, within
from edge.faults import build_errors
from edge.generate import Answer, AnswerMaker, AnswerStream, Prompt
from edge.memory import available_bytes, encoder_shape, plan_memory
from edge.pictures import Pictures
from edge.positions import Positions, plain_positions, rope_positions
from edge.preprocess import PREPROCESSORS
from edge.prompt import Message, Part, PromptEncoder, user
from edge.sampling import GenerationSettings, read_generation_config
from edge.session import TILES, Sessions
from edge.slots import Slots
from genrecal.core.errors import BuildError, ConfigError, DataError

Query = Sequence[Part] | Sequence[Message]


class EdgeModel:
    """An opened build with its graphs loaded; `settings` are the build's own generation settings.

    A query is a sequence of parts, texts and PIL images in any order, or a conversation: a sequence of
    messages that ends with the user's. One object serves one thread.
    """

    def __init__(
        self,
        build: Build,
        device: Device,
        threads: int | None = None,
        *,
        memory_bytes: int | None = None,
        reuse: bool = True,
    ) -> None:
        if build.family not in PREPROCESSORS:
            raise BuildError(
                f"is of the family '{build.family}', which this runtime does not know",
                where=build.folder,
                fix=f"Supported: {', '.join(PREPROCESSORS)}",
            )
        if memory_bytes is not None and memory_bytes <= 0:
            raise ConfigError(f"a memory limit of {memory_bytes} bytes holds nothing")
        self.build, self.device, self.threads = build, device, threads
        preprocessor = PREPROCESSORS[build.family]
        preprocessing = preprocessor.read(build.preprocessor_config, build.config)
        self._image_token = _image_token(build)
        self.settings: GenerationSettings = read_generation_config(build.generation_config)
        encoder = PromptEncoder(
            tokenizer=build.tokenizer,
            template=build.chat_template,
            image_token=self._image_token,
            names=build.special_tokens,
        )
        # Before the graphs are there: what is free now is what they and all queries share.
        limit_bytes = available_bytes() if memory_bytes is None else memory_bytes
        device = within(device, limit_bytes=memory_bytes, free_bytes=limit_bytes)
        self.sessions = Sessions(build, device, threads)
        self._merge = _merge_size(build) if self.sessions.rotary_axes == 3 else None
        self.budget = plan_memory(
            limit_bytes=limit_bytes,
            weights_bytes=weights_bytes(build),
            token_bytes=self.sessions.layout.token_bytes,
            positions=_positions(build),
            encoder=encoder_shape(build.config, tiles=TILES),
        )
        kept = self.budget.kept_bytes // 2 if reuse else 0
        self.pictures = Pictures(
            preprocessor,
            preprocessing,
            self.sessions,
            capacity_bytes=kept,
            check=self.budget.check_picture,
        )
        self.slots = Slots(self.sessions.layout, capacity_bytes=kept)
        # Tokenizer and graphs were opened by name, after they were compared with their hashes.
        build.sealed.require_unchanged()
        self._maker = AnswerMaker(
            sessions=self.sessions,
            encoder=encoder,
            pictures=self.pictures,
            slots=self.slots,
            budget=self.budget,
        )

    @classmethod
    def open(
        cls,
        folder: Path,
        device: str = "cpu",
        threads: int | None = None,
        verify: bool = True,
        *,
        memory_bytes: int | None = None,
        reuse: bool = True,
        manifest_sha256: str | None = None,
        trusted_keys: Sequence[Path] = (),
    ) -> EdgeModel:
        """Open a build folder and load its graphs.

        Args:
            folder: what `genrecal export` wrote.
            device: cpu, cuda or jetson.
            threads: threads of one graph; None takes every core.
            verify: compare every file with its SHA-256 first.
            memory_bytes: what weights, kept images and queries may take; None: most of what is free now.
            reuse: keep features, keys and values for later questions on the same images.
            manifest_sha256: the only manifest that is opened, by its SHA-256.
            trusted_keys: public keys (PEM); only a build that one of them has signed is opened.

        Raises:
            BuildError: the folder is no build, or one that is incomplete, altered or not for this runtime.
            DeviceError: this machine is no such device, the build is not made for it, or memory is short.
        """
        opened = open_build(folder, verify=verify, manifest_sha256=manifest_sha256, trusted_keys=trusted_keys)
        runs_on = require_device(device)
        with build_errors(opened.folder):
            return cls(opened, runs_on, threads, memory_bytes=memory_bytes, reuse=reuse)

    def answer(self, query: Query, **overrides: Any) -> Answer:
        """The answer to a query.

        Args:
            query: texts and PIL images in their order, or messages.
            overrides: fields of `GenerationSettings` in the place of the build's own.

        Raises:
            DataError: the query is empty or too long, or an image is longer than 200:1 or too large.
            ConfigError: an override is unknown or out of its range.
        """
        return self.stream(query, **overrides).answer

    def stream(self, query: Query, **overrides: Any) -> AnswerStream:
        """The same answer in pieces of text, as they come; its time runs from the first piece asked for."""
        return AnswerStream(self._generate(query, self.settings.overridden(overrides)))

    def answers(self, queries: Sequence[Query], **overrides: Any) -> list[Answer]:
        """Answers to several queries, decoded together; the errors of `answer`."""
        asked_at, settings = time.perf_counter(), self.settings.overridden(overrides)
        prompts = [self.prompt(query) for query in queries]
        with build_errors(self.build.folder):
            return self._maker.generate_batch(prompts, settings, asked_at=asked_at) if prompts else []

    def forced_logits(self, query: Query, answer_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of a given answer, [len(answer_ids) + 1, vocabulary]: row i predicts `answer_ids[i]`."""
        prompt = self.prompt(query)
        with build_errors(self.build.folder):
            return self._maker.forced_logits(prompt, answer_ids)

    def image_features(self, query: Query) -> NDArray[np.float32]:
        """features_MD of all images of a query, as the decoder gets them."""
        looks = self.prompt(query).looks
        with build_errors(self.build.folder):
            features = [self.pictures.features(look) for look in looks]
        return np.concatenate(features) if features else np.zeros((0, 0), np.float32)

    def prompt(self, query: Query) -> Prompt:
        """Preprocess and tokenize a query.

        Raises:
            DataError: the query is empty, or an image is longer than 200:1 or too large.
        """
        messages = _messages(query)
        with build_errors(self.build.folder):
            return self._prompt(messages)

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        images = [part for message in messages for part in message.parts if isinstance(part, Image.Image)]
        looks = tuple(self.pictures.look(image, alone=len(images) == 1) for image in images)
        ids = self._maker.encoder.encode(messages, [look.prompt for look in looks])
        ids_S = np.array(ids, dtype=np.int64)
        is_image_S = ids_S == self._image_token
        if int(is_image_S.sum()) != sum(look.tokens for look in looks):
            raise DataError("the prompt holds other image tokens than its images have")
        return Prompt(ids_S=ids_S, positions=self._place(ids_S, looks), looks=looks, is_image_S=is_image_S)

    def forget(self) -> None:
        """Drop all that is kept of earlier questions."""
        self.pictures.clear()
        self.slots.clear()

    def _place(self, ids_S: NDArray[np.int64], looks: Sequence[Any]) -> Positions:
        if self._merge is None:
            return plain_positions(len(ids_S))
        grid_I3 = np.array([look.grid for look in looks], dtype=np.int64).reshape(-1, 3)
        return rope_positions(ids_S, grid_I3, image_token=self._image_token, merge=self._merge)

    def _generate(self, query: Query, settings: GenerationSettings) -> Generator[str, None, Answer]:
        asked_at = time.perf_counter()
        prompt = self.prompt(query)
        with build_errors(self.build.folder):
            return (yield from self._maker.generate(prompt, settings, asked_at=asked_at))


def weights_bytes(build: Build) -> int:
    """The size of a build's graphs with their external data."""
    files = build.manifest["files"]
    return sum(int(entry["bytes"]) for name, entry in files.items() if name.startswith("onnx/"))


def _messages(query: Query) -> list[Message]:
    parts = list(query)
    if parts and all(isinstance(part, Message) for part in parts):
        return cast(list[Message], parts)
    return [user(*cast(list[Part], parts))]


def _image_token(build: Build) -> int:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(build.config.get(name), int):
            return int(build.config[name])
    raise BuildError("its config.json lacks a value ('image_token_id')", where=build.folder)


def _merge_size(build: Build) -> int:
    try:
        return int(build.config["vision_config"]["spatial_merge_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"its config.json lacks a value ({error})", where=build.folder) from None


def _positions(build: Build) -> int:
    text = build.config.get("text_config") or build.config
    try:
        return int(text["max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"its config.json lacks a value ({error})", where=build.folder) from None
