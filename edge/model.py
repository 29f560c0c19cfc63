"""The one object that the command line, the benchmarks and a user's own program ask questions.

model = EdgeModel.open(Path("build"))
model.answer((image, "How many circles?")).text
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.build import Build, open_build
from edge.device import Device, require_device
from edge.generate import Answer, AnswerStream, Prompt, forced_logits, generate
from edge.positions import rope_positions
from edge.preprocess import PREPROCESSORS
from edge.prompt import Part, PromptEncoder
from edge.sampling import GenerationSettings, read_generation_config
from edge.session import Sessions
from genrecal.core.errors import BuildError


class EdgeModel:
    """An opened build with its graphs loaded; `settings` are the build's own generation settings.

    A query is a sequence of parts, texts and PIL images in any order. One object serves one thread.
    """

    def __init__(self, build: Build, device: Device, threads: int | None = None) -> None:
        if build.family not in PREPROCESSORS:
            raise BuildError(
                f"is of the family '{build.family}', which this runtime does not know",
                where=build.folder,
                fix=f"Supported: {', '.join(PREPROCESSORS)}",
            )
        self.build, self.device, self.threads = build, device, threads
        try:
            self._image_token = int(build.config["image_token_id"])
            self._merge = int(build.config["vision_config"]["spatial_merge_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise BuildError(f"its config.json lacks a value ({error})", where=build.folder) from None
        self._preprocessor = PREPROCESSORS[build.family]
        self._preprocessing = self._preprocessor.read(build.preprocessor_config)
        self.settings: GenerationSettings = read_generation_config(build.generation_config)
        self._encoder = PromptEncoder(
            tokenizer=build.tokenizer, template=build.chat_template, image_token=self._image_token
        )
        self.sessions = Sessions(build, device, threads)

    @classmethod
    def open(
        cls, folder: Path, device: str = "cpu", threads: int | None = None, verify: bool = True
    ) -> EdgeModel:
        """Open a build folder and load its graphs.

        Args:
            folder: what `genrecal export` wrote.
            device: cpu, cuda or jetson.
            threads: threads of one graph; None takes every core.
            verify: compare every file with its SHA-256 first.

        Raises:
            BuildError: the folder is no build, or one that is incomplete, altered or not for this runtime.
            DeviceError: this machine is no such device.
        """
        return cls(open_build(folder, verify=verify), require_device(device), threads)

    def answer(self, parts: Sequence[Part], **overrides: Any) -> Answer:
        """The answer to a query.

        Args:
            parts: texts and PIL images in the order of the query.
            overrides: fields of `GenerationSettings` in the place of the build's own.

        Raises:
            DataError: the query is empty, or an image is longer than 200:1.
            ConfigError: an override is unknown or out of its range.
        """
        return self.stream(parts, **overrides).answer

    def stream(self, parts: Sequence[Part], **overrides: Any) -> AnswerStream:
        """The same answer in pieces of text, as they come; its time runs from the first piece asked for."""
        return AnswerStream(self._generate(parts, self.settings.overridden(overrides)))

    def forced_logits(self, parts: Sequence[Part], answer_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of a given answer, [len(answer_ids) + 1, vocabulary]: row i predicts `answer_ids[i]`."""
        return forced_logits(self.sessions, self.prompt(parts), answer_ids, image_token=self._image_token)

    def prompt(self, parts: Sequence[Part]) -> Prompt:
        """Preprocess and tokenize a query.

        Raises:
            DataError: the query is empty, or an image is longer than 200:1.
        """
        images = [part for part in parts if isinstance(part, Image.Image)]
        pixels = self._preprocessor.prepare(images, self._preprocessing)
        ids_S = np.array(self._encoder.encode(parts, pixels.image_tokens), dtype=np.int64)
        positions = rope_positions(ids_S, pixels.grid_I3, image_token=self._image_token, merge=self._merge)
        return Prompt(
            ids_S=ids_S,
            positions=positions,
            pixel_values_NE=pixels.pixel_values_NE,
            grid_I3=pixels.grid_I3,
        )

    def _generate(self, parts: Sequence[Part], settings: GenerationSettings) -> Generator[str, None, Answer]:
        asked_at = time.perf_counter()
        return (
            yield from generate(
                self.sessions,
                self._encoder,
                self.prompt(parts),
                settings,
                image_token=self._image_token,
                asked_at=asked_at,
            )
        )
