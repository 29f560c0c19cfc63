"""The training mixture: every source's samples, without the domains that a stage leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from genrecal.core.config import Config
from genrecal.core.errors import DataError
from genrecal.core.images import open_image
from genrecal.core.types import Sample
from genrecal.data.llava import read_llava


class SourceConfig(Config):
    """One file of conversations."""

    path: Path
    """LLaVA conversation JSON."""
    images: Path | None = None
    """The folder that image paths start from; default: the folder of `path`."""
    domain: str | None = None
    """Domain of the rows that name none: general_vqa, knowledge, science_math or chart_document."""


def read_mixture(sources: Sequence[SourceConfig]) -> tuple[Sample, ...]:
    """All samples of `sources`, in their order.

    Raises:
        DataError: a row cannot be used, or names an image that does not exist.
    """
    samples = [
        sample
        for source in sources
        for sample in read_llava(source.path, images=source.images, domain=source.domain)
    ]
    for path in {path for sample in samples for path in sample.images}:
        if not path.is_file():
            owner = next(sample for sample in samples if path in sample.images)
            raise DataError(
                "no such image", where=path, fix=f"Sample '{owner.id}' of {owner.source} names it"
            )
    return tuple(samples)


def without_domains(samples: Sequence[Sample], excluded: Sequence[str]) -> tuple[Sample, ...]:
    """The samples of the other domains (paper, section 4.1c: stage 3 leaves out general VQA)."""
    kept = tuple(sample for sample in samples if sample.domain not in excluded)
    if not kept:
        raise DataError(f"no sample is left without the domains {', '.join(excluded)}", where="data")
    return kept


def training_images(samples: Sequence[Sample]) -> Iterator[tuple[str, Image.Image]]:
    """Every image of `samples` once, decoded, by its path."""
    for path in dict.fromkeys(path for sample in samples for path in sample.images):
        yield str(path), open_image(path)
