"""The training mixture: every source's samples as one sequence, without what the config leaves out.

    sources -> tables (cache.py) -> Mixture: [i] -> Sample, arrays of domains and lengths, parts with weights

Nothing of a sample is in memory until it is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import DOMAINS, Sample
from genrecal.data.bad import BadRows
from genrecal.data.cache import Table, open_table
from genrecal.data.exclusion import without_ids
from genrecal.data.lengths import image_sizes, token_lengths
from genrecal.data.order import Part, epoch_size
from genrecal.data.source import MixtureConfig, SourceConfig

__all__ = ["Mixture", "MixtureConfig", "SourceConfig", "read_mixture", "training_images", "without_domains"]

# What an image counts for in a length in characters: some hundred tokens, of about four characters each.
IMAGE_CHARACTERS = 2000


class Mixture(Sequence[Sample]):
    """All samples of some tables, or a choice of them; cheap to hold, to pickle and to choose from."""

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        kept: np.ndarray | None = None,
        holder: Any = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """A mixture over `tables`.

        Args:
            tables: one for each source.
            kept: ascending places among all rows of all tables, int64 [N]; None: every row.
            holder: what must live as long as the mixture does, as a temporary folder.
            notes: what the user should know about it, a line each.
        """
        self.tables, self._kept, self._holder, self.notes = tuple(tables), kept, holder, notes
        self._ends = np.cumsum([0, *(len(table) for table in self.tables)])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        row = self.place(index)
        table = int(np.searchsorted(self._ends, row, side="right")) - 1
        return self.tables[table][row - int(self._ends[table])]

    def place(self, index: int) -> int:
        """One of `places`."""
        within = index + len(self) if index < 0 else index
        if not 0 <= within < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return within if self._kept is None else int(self._kept[within])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_holder": None}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The samples of each source that has any, in order, with the source's weight."""
        ends = self._ends if self._kept is None else np.searchsorted(self._kept, self._ends)
        return tuple(
            Part(samples=int(count), weight=table.source.weight)
            for table, count in zip(self.tables, np.diff(ends), strict=True)
            if count
        )

    @property
    def domains(self) -> np.ndarray:
        """The place of each sample's domain in DOMAINS, uint8 [N]."""
        return self._column("domains")

    @property
    def lengths(self) -> np.ndarray:
        """About how long each sample is, in characters of text, int32 [N]; an image counts for many."""
        return self._column("characters") + self._column("images").astype(np.int32) * IMAGE_CHARACTERS

    def token_lengths(self, processors: Sequence[Any]) -> np.ndarray:
        """About how many tokens each sample has for VLMs with these processors, int32 [N] (lengths.py)."""
        whole = token_lengths(self.tables, processors)
        return whole if self._kept is None else whole[self._kept]

    @property
    def places(self) -> np.ndarray:
        """The place of each sample among all rows of all tables, int64 [N]; a choice of them keeps theirs."""
        return np.arange(self._ends[-1]) if self._kept is None else self._kept

    @property
    def skipped(self) -> int:
        """Bad rows that were left out."""
        return sum(table.skipped for table in self.tables)

    def only(self, chosen: np.ndarray) -> Mixture:
        """The samples where `chosen`, bool [N], is true."""
        if chosen.all():
            return self
        kept = np.flatnonzero(chosen) if self._kept is None else self._kept[chosen]
        return Mixture(self.tables, kept=kept, holder=self._holder, notes=self.notes)

    def _column(self, name: str) -> np.ndarray:
        whole = np.concatenate([table.columns[name] for table in self.tables])
        return whole if self._kept is None else whole[self._kept]


def read_mixture(data: MixtureConfig | Sequence[SourceConfig], *, cache: Path | None = None) -> Mixture:
    """All samples of the sources, in their order.

    Args:
        data: the sources with what is left out of them, or the sources alone.
        cache: where tables are kept if `data` does not say; None: a temporary folder, gone with the mixture.

    Raises:
        DataError: rows cannot be used, the first of them named; an exclusion file names none of them; or
            nothing is left.
    """
    config = data if isinstance(data, MixtureConfig) else MixtureConfig(sources=tuple(data))
    folder, holder = config.cache or cache, None
    if folder is None:
        holder = tempfile.TemporaryDirectory(prefix="genrecal-data-")
        folder = Path(holder.name)
    bad = BadRows(skips=config.on_bad == "skip", limit=config.max_bad)
    tables = [open_table(source, folder, bad) for source in config.sources]
    bad.require_none()
    if config.buckets:
        for table in tables:
            image_sizes(table)  # once, before ranks start
    kept = without_ids(tables, config)
    mixture = Mixture(tables, holder=holder, notes=kept.notes).only(kept.chosen)
    mixture = without_domains(mixture, config.exclude_domains)
    if not epoch_size(mixture.parts):
        raise DataError("no sample is left", where="data", fix="Are all excluded, or all weights tiny?")
    return mixture


def without_domains(mixture: Mixture, excluded: Sequence[str]) -> Mixture:
    """A view on the samples of the other domains (paper, section 4.1c: stage 3 leaves out general VQA)."""
    if not excluded:
        return mixture
    places = [place for place, domain in enumerate(DOMAINS) if domain in excluded]
    kept = mixture.only(~np.isin(mixture.domains, places))
    if not len(kept):
        raise DataError(f"no sample is left without the domains {', '.join(excluded)}", where="data")
    return kept


def training_images(samples: Iterable[Sample]) -> Iterator[tuple[str, Image.Image]]:
    """Every image of `samples` once, decoded, with a name that finds it again."""
    for image in dict.fromkeys(image for sample in samples for image in sample.images):
        yield str(image), open_image(image)
