"""From a teacher's forward passes to its store, and from the store into batches.

    Stamped     a teacher's sample with its origin: key, and a digest of what the teacher reads
    Recorder    features of a forward pass over such samples -> ShardWriter
    Stored      a sample from the store; images are not opened for it

Stage 1 records what its own forward passes compute, so that only the rest is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.types import Sample
from genrecal.data.batch import Batch
from genrecal.data.features import FeatureType, Origin, Packed, SampleFeatures, zeros
from genrecal.data.pair import TokenizedSample, name_of, tokenize, tokenize_answer
from genrecal.train.teacher_store import Record, ShardWriter, TeacherStore, question_key, sample_key


def input_digest(row: TokenizedSample) -> int:
    """64 bits of the tokens and pixels that a model reads of a sample."""
    digest = hashlib.blake2b(digest_size=8)
    named = {"question_ids": row.question_ids, "answer_ids": row.answer_ids, **row.token_inputs, **row.vision}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


class Stamped:
    """`pair.py::Reads` for a live teacher whose features are recorded."""

    pixels = True
    absent = None

    def __call__(
        self, sample: Sample, processor: Any, images: list[Image.Image], *, max_tokens: int
    ) -> TokenizedSample:
        """`tokenize`, with the origin."""
        row = tokenize(sample, processor, images, max_tokens=max_tokens)
        return replace(row, origin=Origin(key=sample_key(sample), inputs=input_digest(row)))


@dataclass(frozen=True, kw_only=True)
class Stored:
    """`pair.py::Reads` for a teacher whose features are in a store."""

    pixels = False
    store: TeacherStore
    stored: Sequence[float]  # depths in the store
    depths: Sequence[float]  # those that are read
    domains: Collection[str] | None  # of the samples that the teacher teaches; None: all
    questions: (
        bool | Collection[int]
    )  # of which samples the question's features are read: all, none, or by key
    kind: FeatureType
    width: int  # the teacher's hidden size

    @property
    def absent(self) -> TokenizedSample:
        """A sample that is left out: no answer, and nothing that a loss looks at."""
        nothing = torch.zeros(0, dtype=torch.long)
        one = zeros((1, len(self.depths), self.width), self.kind)
        return _stored_row(nothing, nothing, SampleFeatures(answer=one, question=one, question_length=1))

    def __call__(
        self, sample: Sample, processor: Any, images: list[Image.Image], *, max_tokens: int
    ) -> TokenizedSample:
        """The sample with its features.

        Raises:
            DataError: it is not in the store, or its answer has another number of tokens there.
        """
        key = sample_key(sample)
        answer_ids, answer_ends = tokenize_answer(sample, processor)
        answer, record = self.store.read(key), self.store.record(key)
        asked = self.questions if isinstance(self.questions, bool) else key in self.questions
        question = self.store.read(question_key(key)) if asked else None
        if answer is None or record is None:
            if self.domains is None or sample.domain in self.domains:
                raise self._missing(sample, "its features are")
            answer = zeros((len(answer_ids), len(self.stored), self.width), self.kind)
            question = zeros((1, len(self.stored), self.width), self.kind) if asked else None
        elif asked and question is None:
            raise self._missing(sample, "the features of its question are")
        if len(answer.values) != len(answer_ids):
            raise DataError(
                f"has {len(answer.values)} answer tokens in {self.store.cache}, and {len(answer_ids)} now",
                where=name_of(sample),
                fix="Did the tokenizer change? Delete that folder",
            )
        return _stored_row(
            answer_ids,
            answer_ends,
            SampleFeatures(
                answer=self._chosen(answer),
                question=None if question is None else self._chosen(question),
                question_length=1 if record is None else record.question_length,
            ),
        )

    def _chosen(self, packed: Packed) -> Packed:
        """The depths that are read."""
        if tuple(self.depths) == tuple(self.stored):
            return packed
        places = [list(self.stored).index(depth) for depth in self.depths]
        scales = None if packed.scales is None else packed.scales[:, places]
        return Packed(values=packed.values[:, places], scales=scales)

    def _missing(self, sample: Sample, what: str) -> DataError:
        return DataError(
            f"{what} not in {self.store.cache}",
            where=name_of(sample),
            fix="`genrecal cache CONFIG` computes what is missing",
        )


def _stored_row(
    answer_ids: torch.Tensor, answer_ends: torch.Tensor, features: SampleFeatures
) -> TokenizedSample:
    return TokenizedSample(
        question_ids=answer_ids[:0],
        token_inputs={},
        answer_ids=answer_ids,
        answer_ends=answer_ends,
        vision={},
        features=features,
    )


class Recorder:
    """Takes features out of a teacher's forward passes; one for each rank and teacher."""

    def __init__(
        self,
        store: TeacherStore,
        writer: ShardWriter,
        *,
        depths: Sequence[float],
        questions: bool | Collection[int],
    ) -> None:
        """Record what `store` does not hold yet.

        Args:
            store: as it was before.
            writer: where records go.
            depths: what a record holds, ascending.
            questions: of which samples the question is recorded too: all, none, or those with these keys.
        """
        self.store, self.writer, self.depths, self.questions = store, writer, tuple(depths), questions
        self._recorded: set[int] = set()

    def take(self, batch: Batch, features: dict[float, torch.Tensor], chosen_B: torch.Tensor) -> list[int]:
        """Record the samples of `batch` where `chosen_B` is true, or whose question is wanted by its key.

        Args:
            batch: read by `Stamped`.
            features: by depth, [B, S, D].
            chosen_B: bool.

        Returns:
            The rows with features that are not finite: they are not recorded.
        """
        refused = []
        lengths = zip(batch.question_lengths_B.tolist(), batch.answer_mask_BA.sum(1).tolist(), strict=True)
        for row, (question, answer) in enumerate(lengths):
            origin = batch.origins[row]
            if origin is None:  # of a sample that was left out
                continue
            asked = self.questions if isinstance(self.questions, bool) else origin.key in self.questions
            named = not isinstance(self.questions, bool) and asked
            spans = {}
            if bool(chosen_B[row]) or named:
                spans[origin.key] = slice(question - 1, question - 1 + answer)
                if asked:
                    spans[question_key(origin.key)] = slice(0, question)
            for key, span in spans.items():
                if key in self._recorded or self.store.record(key) is not None:
                    continue
                z_NLD = torch.stack([features[depth][row, span] for depth in self.depths], dim=1)
                if not bool(z_NLD.isfinite().all()):
                    refused.append(row)
                    break
                self._recorded.add(key)
                self.writer.add(Record(key=key, question_length=question, inputs=origin.inputs), z_NLD)
        return refused

    def close(self) -> None:
        """Write what is left in memory."""
        self.writer.flush()


@contextmanager
def recorded_by_leader(sources: Iterable[Any]) -> Iterator[None]:
    """While this is open, rank 0 alone records: every rank reads the same samples."""
    held = [(source, source.recorder) for source in sources]
    for source, _ in held:
        source.recorder = source.recorder if dist.get_rank() == 0 else None
    try:
        yield
    finally:
        for source, recorder in held:
            source.recorder = recorder
