"""features.safetensors of a run: features of a few question-answer pairs, before and after each stage.

Averaged over positions. N pairs; D_s is the student's width, D_l the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from genrecal.core.cosines import Array
from genrecal.core.errors import GenrecalError
from genrecal.figures.runs import FEATURES, Missing, Run, stage_folders

HOW = "`genrecal distill` leaves them for methods with a Recalibrator, unless engine.feature_samples is 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Features at the start or the end of a stage, by name: [N, D]."""

    stage: str
    when: str  # before | after
    tensors: dict[str, Array]


def start_and_end(run: Run, names: Sequence[str]) -> tuple[Moment, Moment] | None:
    """The features before the first stage that left some and after the last one; None: there are none.

    Raises:
        Missing: a file lacks some of `names`.
        GenrecalError: a file is damaged.
    """
    folders = [folder for folder in stage_folders(run) if (folder / FEATURES).is_file()]
    if not folders:
        return None
    return _moment(folders[0], "before", names), _moment(folders[-1], "after", names)


def _moment(folder: Path, when: str, names: Sequence[str]) -> Moment:
    path = folder / FEATURES
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise GenrecalError(f"cannot be read ({error})", where=path) from None
    missing = [name for name in names if f"{when}.{name}" not in tensors]
    if missing:
        raise Missing(f"{path} has no {when}.{missing[0]}", fix=HOW)
    stage = folder.name.partition("-")[2]
    found = {name: tensors[f"{when}.{name}"].astype(np.float64) for name in names}
    return Moment(stage=stage, when=when, tensors=found)
