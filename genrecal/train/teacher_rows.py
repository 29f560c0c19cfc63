"""What one teacher reads of samples, in batches; and whether that is what it read before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genrecal.core.errors import ConfigError, DataError, GenrecalError
from genrecal.core.types import Sample
from genrecal.data.batch import Batch, collate_one
from genrecal.data.inputs import Prompt, blank_prompt
from genrecal.data.pair import TokenizedSample, absent_sample, open_images
from genrecal.models.processors import load_processor
from genrecal.train.recording import Stamped
from genrecal.train.settings import RunConfig
from genrecal.train.teacher_store import TeacherStore

LIVE_CHECKS = 8  # samples that are tokenized anew at every start


@dataclass(frozen=True, kw_only=True)
class TeacherRows:
    """What one teacher reads of samples, in batches."""

    samples: Sequence[Sample]
    processor: Any
    blank: Prompt
    max_tokens: int
    skips: bool  # whether samples that cannot be read are left out

    def __call__(self, indices: list[int]) -> Batch | GenrecalError:
        """A batch, or what is wrong with it, as a value: a worker's exceptions arrive as tracebacks."""
        try:
            rows = [self._row(self.samples[index]) for index in indices]
        except GenrecalError as error:
            return error
        return collate_one(rows, padding=self.processor.tokenizer.pad_token_id, blank=self.blank)

    def _row(self, sample: Sample) -> TokenizedSample:
        try:
            return Stamped()(sample, self.processor, open_images(sample), max_tokens=self.max_tokens)
        except DataError:
            if not self.skips:
                raise
            return absent_sample(self.blank, ()).student  # the stage that reads it names it


def teacher_rows(config: RunConfig, place: int, samples: Sequence[Sample]) -> TeacherRows:
    path = config.sources[place].path
    limits = {"max_tiles": config.data.max_tiles, "max_pixels": config.data.max_pixels}
    processor = load_processor(path, **limits, code=config.code(path))
    return TeacherRows(
        samples=samples,
        processor=processor,
        blank=blank_prompt(processor),
        max_tokens=config.data.max_tokens,
        skips=config.data.on_bad == "skip",
    )


def compare_live(config: RunConfig, place: int, samples: Any, keys: np.ndarray, store: TeacherStore) -> None:
    """Tokenize some samples anew: what the teacher would read must be what it has read.

    Raises:
        ConfigError: it is not.
    """
    held = np.flatnonzero(store.holds(keys))
    read = replace(teacher_rows(config, place, samples), skips=False)
    for index in np.random.default_rng(config.seed).permutation(held)[:LIVE_CHECKS]:
        found = read([int(index)])
        if isinstance(found, GenrecalError):
            raise found
        (origin,), recorded = found.origins, store.record(int(keys[index]))
        assert origin is not None and recorded is not None
        if origin.inputs != recorded.inputs:
            raise ConfigError(
                f"holds features of sample '{samples[int(index)].id}' from other tokens or pixels than the"
                " teacher reads now",
                where=store.cache,
                fix="Was an image replaced, or the image library? Delete this folder, or name another one",
            )
