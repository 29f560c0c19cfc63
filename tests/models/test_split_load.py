"""A model that ZeRO-3 splits while it is read is the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import NAMES
from tests.train.conftest import TIMEOUT_S, as_one_rank


@pytest.mark.full
def test_weights_and_rotary_frequencies_are_those_of_a_plain_load(family_folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.load_split", *map(str, family_folders.values())],
        env=as_one_rank(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [] for name in NAMES}
