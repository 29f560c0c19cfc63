"""A run over hostile data: what cannot be read is left out, counted once, and stops it above a limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from genrecal.core.errors import DataError
from tests.hostile import MAX_TOKENS, HostileData, write_hostile
from tests.train.conftest import CARD, Run, WriteConfig, drive, environment, folder_hash

RANKS, MICRO_BATCH, ACCUMULATION = 2, 2, 2
TIMEOUT_S = 900  # two ranks and their readers take minutes beside other work
PER_STEP = RANKS * MICRO_BATCH * ACCUMULATION
# The second one reads no teacher, and still not what that could not read.
STAGES = ("distill-uld", "finetune")


# Three runs.
pytestmark = pytest.mark.timeout(3 * TIMEOUT_S)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> HostileData:
    """Whole steps of it: an epoch reads everything."""
    return write_hostile(tmp_path_factory.mktemp("hostile") / "data", samples_divide_by=PER_STEP)


def config(write_config: WriteConfig, hostile: HostileData, name: str, *, max_bad: int) -> Path:
    return write_config(
        name,
        method="uld",
        ranks=RANKS,
        micro_batch=MICRO_BATCH,
        accumulation=ACCUMULATION,
        workers=1,
        changes={
            "data": {
                "sources": [{"path": str(path), "domain": "knowledge"} for path in hostile.sources],
                "max_tokens": MAX_TOKENS,
                "on_bad": "skip",
                "max_bad": max_bad,
            },
        },
    )


@pytest.fixture(scope="module")
def whole(write_config: WriteConfig, hostile: HostileData) -> Run:
    """As much may be left out as there is."""
    path = config(write_config, hostile, "hostile", max_bad=hostile.count("row", "sample"))
    done = drive([path], environment(), timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(folder=path.with_suffix(""), printed=done.stdout)


def journal(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted((folder / "quarantine").glob("rank-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_kept_and_quarantined_are_all(whole: Run, hostile: HostileData) -> None:
    rows, samples, kept = (hostile.count(fate) for fate in ("row", "sample", "kept"))
    assert rows + samples + kept == len(hostile.cases)
    totals = json.loads((whole.folder / "quarantine.json").read_text())
    for stage in STAGES:
        assert totals[stage] == {
            "total": len(hostile.cases),
            "kept": kept,
            "quarantined": samples,
            "rows_left_out": rows,
            "not_read": 0,
        }
        line = f"{stage}: {kept} kept + {rows + samples} quarantined = {len(hostile.cases)} samples"
        assert line in whole.printed
        # And as the steps counted them, over both ranks.
        assert sum(row["samples"] for row in whole.steps(stage)) == kept
    assert "quarantine.json" in json.loads((whole.folder / "manifest.json").read_text())["files"]


def test_each_is_written_down_once_with_its_reason(whole: Run, hostile: HostileData) -> None:
    lines = {line["id"]: line for line in journal(whole.folder)}
    assert len(lines) == len(journal(whole.folder)) == hostile.count("sample")
    assert {line["stage"] for line in lines.values()} == {STAGES[0]}
    assert {line["rank"] for line in lines.values()} == {0, 1}
    for case in hostile.cases:
        if case.fate == "sample":
            assert case.says in lines[case.name]["what"]
            assert 0 <= lines[case.name]["step"] < len(whole.steps(STAGES[0]))


@pytest.mark.full
def test_above_the_limit_all_ranks_stop_and_the_same_command_goes_on(
    write_config: WriteConfig, whole: Run, hostile: HostileData
) -> None:
    """In the middle of the first stage; with a higher limit it ends as if it had never stopped."""
    path = config(write_config, hostile, "limited", max_bad=hostile.count("row") + 12)
    folder = path.with_suffix("")
    done = drive([path], environment(), timeout_s=TIMEOUT_S)
    assert done.returncode == DataError.exit_code
    said = [line for line in done.stderr.splitlines() if line.startswith("error: data:")]
    assert len(said) == 1 and "Traceback" not in done.stderr
    assert f"max_bad is {hostile.count('row') + 12}; the last ones: sample '" in said[0]
    written = journal(folder)
    first = max(line["step"] for line in written)
    assert len(written) > 12 and (folder / "metrics.jsonl").read_text().count("\n") == first
    settings = yaml.safe_load(path.read_text())
    settings["data"]["max_bad"] = hostile.count("row", "sample")
    path.write_text(yaml.safe_dump(settings))
    done = drive([path], environment(), timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{STAGES[0]}: resuming after step" in done.stdout
    places = [line["place"] for line in journal(folder)]
    assert len(places) == len(set(places)) == hostile.count("sample")
    assert json.loads((folder / "quarantine.json").read_text()) == json.loads(
        (whole.folder / "quarantine.json").read_text()
    )
    students = [folder_hash(run / "student", without=CARD) for run in (whole.folder, folder)]
    assert students[0] == students[1]
