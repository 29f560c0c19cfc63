"""Questions about images from the mixture that a run was trained on: for calibration, and for the report.

    run's manifest -> its data -+-> samples, evenly over the mixture -> (images, question)
              data that is named -+

Never from a test set: what a student is scored with must not choose how it is rounded. The prompts go
through the student's own chat template, as all queries do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from genrecal.core.config import parse_config
from genrecal.core.console import console
from genrecal.core.errors import GenrecalError
from genrecal.core.files import read_json
from genrecal.core.images import open_image
from genrecal.core.manifest import NAME
from genrecal.core.types import Sample
from genrecal.data.mixture import read_mixture
from genrecal.data.source import MixtureConfig
from genrecal.export.reference import Query

# Tables of the data, which the run left beside it.
DATA_CACHE = "data-cache"
# Stands for an image in a turn's text.
IMAGE = "<image>"
# Of the report; calibration takes others.
REPORTED = 24
CALIBRATED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQueries:
    """Queries of the training mixture, in two parts that share none."""

    calibration: Sequence[Query]
    report: Sequence[Query]


def training_queries(run: Path) -> TrainingQueries | None:
    """Queries of a run's training data; None for a folder that is no run, or whose data is not here."""
    if not (run / NAME).is_file():
        return None
    manifest = read_json(run / NAME)
    config = manifest.get("config", {}).get("data") if manifest.get("kind") == "run" else None
    if not config:
        return None
    # A run's settings say more, of how it is read.
    known = {key: value for key, value in config.items() if key in MixtureConfig.model_fields}
    cache = run.parent / DATA_CACHE
    try:
        data = parse_config(known, MixtureConfig, where=run / NAME)
        return queries_of(data, cache=cache if cache.is_dir() else None)
    except GenrecalError as error:
        console.print(f"export: the run's training data cannot be read here: {error}", markup=False)
        return None


def queries_of(data: MixtureConfig, *, cache: Path | None = None) -> TrainingQueries:
    """Queries of a mixture, evenly over it.

    Raises:
        DataError: a source cannot be read, or one of the images that were chosen.
    """
    mixture = read_mixture(data, cache=cache)
    count = min(len(mixture), CALIBRATED + REPORTED)
    places = np.linspace(0, len(mixture) - 1, count).round().astype(int)
    queries = [query_of(mixture[int(place)]) for place in places]
    # One in so many to the report, so that both parts have the whole mixture.
    every = -(-count // min(REPORTED, max(1, count // 3)))
    return TrainingQueries(
        calibration=[query for place, query in enumerate(queries) if place % every],
        report=queries[::every],
    )


def query_of(sample: Sample) -> Query:
    """The first question, with its images where they stand in it."""
    text = next(turn.text for turn in sample.turns if turn.role == "user")
    images = iter(sample.images)
    parts: list[str | Image.Image] = []
    for place, piece in enumerate(text.split(IMAGE)):
        if place:
            parts.append(open_image(next(images)))
        if piece.strip():
            parts.append(piece.strip())
    return parts
