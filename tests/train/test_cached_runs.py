"""Runs with a cache of teacher features take the steps that runs with the live teacher take."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from genrecal.core.config import load_config
from genrecal.core.errors import ConfigError
from genrecal.core.manifest import read_manifest
from genrecal.data.mixture import read_mixture
from genrecal.train.launch import fill_cache
from genrecal.train.run import check_run
from genrecal.train.settings import RunConfig
from genrecal.train.teacher_store import SHARDS, TeacherStore, finished_shards, sample_key
from tests.tiny import TinyData, write_data
from tests.train.conftest import (
    ROOT,
    Run,
    WriteConfig,
    as_one_rank,
    assert_same_steps,
    drive,
    environment,
    stage_folder,
)
from tests.train.method_runs import SHORT, merged

CACHE = {"dtype": "fp32", "batch": 3}


def with_cache(path: Path, **settings: Any) -> dict[str, Any]:
    return merged(SHORT, {"teacher_cache": {"path": str(path), **CACHE, **settings}})


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def cached_runs(write_config: WriteConfig, method_data: TinyData, caches: Path) -> dict[str, Run]:
    """One after the other: live; recorded in stage 1; from questions on disk; a later run with ZeRO-3."""
    variants: dict[str, dict[str, Any]] = {
        "live": {"changes": SHORT},
        "recorded": {"changes": with_cache(caches / "answers")},
        "questions": {"changes": with_cache(caches / "questions", question_features=True)},
        "later": {"changes": with_cache(caches / "questions", question_features=True), "zero_stage": 3},
        "int8": {"changes": with_cache(caches / "int8", dtype="int8")},
    }
    configs = {
        name: write_config(
            f"cached-{name}", data=method_data.path, accumulation=1, **{"zero_stage": 0} | settings
        )
        for name, settings in variants.items()
    }
    done = drive(list(configs.values()), as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Run(folder=path.with_suffix(""), printed=done.stdout) for name, path in configs.items()}


@pytest.mark.parametrize("name", ["recorded", "questions", "later"])
def test_cached_and_live_take_the_same_steps(cached_runs: dict[str, Run], name: str) -> None:
    assert_same_steps(cached_runs["live"], cached_runs[name])


def test_int8_is_close(cached_runs: dict[str, Run]) -> None:
    for mine, theirs in zip(cached_runs["live"].metrics, cached_runs["int8"].metrics, strict=True):
        assert mine["terms"] == pytest.approx(theirs["terms"], abs=0.02)
    assert (
        cached_runs["live"].steps("distill")[0]["terms"] != cached_runs["int8"].steps("distill")[0]["terms"]
    )


def test_a_stage_that_reads_the_cache_holds_the_teachers_head_alone(cached_runs: dict[str, Run]) -> None:
    def frozen(name: str, number: int) -> int:
        return read_manifest(stage_folder(cached_runs[name], number), kind="stage")["frozen_parameters"]

    assert frozen("recorded", 1) == frozen("live", 1) > frozen("questions", 1)
    assert frozen("recorded", 2) == frozen("questions", 2) < frozen("live", 2)


def test_stage_1_says_why_it_runs_the_teacher_and_leaves_nothing_to_compute(
    cached_runs: dict[str, Run], caches: Path
) -> None:
    printed = cached_runs["recorded"].printed
    assert printed.count("which regularization reads: the teacher runs live") == 2  # recorded and int8
    assert f"{caches / 'answers'}:" not in printed
    assert printed.count("of 8 samples to compute") == 1  # of `questions`; the later run found them


def test_features_for_the_figures_need_no_live_teacher(cached_runs: dict[str, Run]) -> None:
    for number in (1, 2):
        tensors = [
            load_file(stage_folder(cached_runs[name], number) / "features.safetensors")
            for name in ("live", "recorded", "questions")
        ]
        assert tensors[0].keys() == tensors[1].keys() == tensors[2].keys()
        for key, value in tensors[0].items():
            for other in tensors[1:]:
                assert other[key].shape == value.shape
                assert other[key].sub(value).abs().max() < 1e-3, key


def test_a_run_may_go_on_with_its_cache_elsewhere_but_not_with_another_kind(
    write_config: WriteConfig, method_data: TinyData, cached_runs: dict[str, Run], tmp_path: Path
) -> None:
    config = load_config(cached_runs["recorded"].folder / "config.yaml", RunConfig)
    assert config.teacher_cache is not None

    def with_other(**settings: Any) -> RunConfig:
        return config.model_copy(update={"teacher_cache": config.teacher_cache.model_copy(update=settings)})

    check_run(with_other(path=tmp_path / "elsewhere", batch=1, split=False))
    for settings in ({"dtype": "int8"}, {"question_features": True}):
        with pytest.raises(ConfigError, match=r"other settings \(teacher_cache\)"):
            check_run(with_other(**settings))


@pytest.mark.full
@pytest.mark.parametrize("questions", [False, True])
def test_two_ranks_with_zero_3_record_and_fill(
    write_config: WriteConfig,
    method_data: TinyData,
    cached_runs: dict[str, Run],
    tmp_path: Path,
    questions: bool,
) -> None:
    """With questions it is filled, from an odd number of batches: a rank runs along for the last one."""
    changes = merged(
        with_cache(tmp_path / "cache", question_features=questions),
        {"engine": {"hpz_partition": 2 if questions else 1}},
    )
    path = write_config(
        f"cached-two_ranks-{questions}",
        data=method_data.path,
        changes=changes,
        ranks=2,
        micro_batch=2,
        accumulation=1,
        workers=1,
    )
    done = drive([path], environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_steps(cached_runs["live"], Run(folder=path.with_suffix(""), printed=""))
    assert done.stdout.count("samples to compute") == questions


@pytest.mark.full
def test_parameters_in_the_hosts_memory_change_nothing(
    write_config: WriteConfig, method_data: TinyData, cached_runs: dict[str, Run]
) -> None:
    changes = merged(SHORT, {"engine": {"offload_params": "cpu"}})
    path = write_config("offloaded", data=method_data.path, accumulation=1, changes=changes)
    done = drive([path], as_one_rank())
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_steps(cached_runs["live"], Run(folder=path.with_suffix(""), printed=""))


def test_another_teachers_cache_is_refused_before_a_rank_starts(
    write_config: WriteConfig, method_data: TinyData, cached_runs: dict[str, Run], caches: Path
) -> None:
    changes = with_cache(caches / "answers") | {"data": {"max_tiles": 1}}
    path = write_config("refused", data=method_data.path, changes=changes, zero_stage=0)
    with pytest.raises(ConfigError, match=r"data\.max_tiles was None, is 1"):
        check_run(load_config(path, RunConfig))
    with pytest.raises(ConfigError, match="serves no stage of this run"):
        changes = with_cache(caches / "answers") | {"objective": {"regularize_in_distill": True}}
        check_run(load_config(write_config("unserved", changes=changes), RunConfig))
    with pytest.raises(ConfigError, match="teacher_cache: names no folder"):
        fill_cache(load_config(write_config("nameless"), RunConfig))
    assert not path.with_suffix("").exists()


@pytest.mark.full
def test_a_killed_command_goes_on_behind_its_shards(write_config: WriteConfig, tmp_path: Path) -> None:
    """`genrecal cache`, killed with SIGKILL after its first shard and started again."""
    data = write_data(tmp_path / "data", samples=24)
    changes = with_cache(tmp_path / "cache", question_features=True, shard_mib=0.05)
    path = write_config("killed-fill", data=data.path, changes=changes, zero_stage=0)
    command = [sys.executable, "-m", "cli", "cache", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, env=as_one_rank(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not finished_shards(tmp_path / "cache") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = {
        name: (tmp_path / "cache" / SHARDS / f"{name}.json").read_text()
        for name in finished_shards(tmp_path / "cache")
    }
    done = subprocess.run(
        command, cwd=ROOT, env=as_one_rank(), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    after = finished_shards(tmp_path / "cache")
    assert first and len(after) > len(first)
    assert all(
        (tmp_path / "cache" / SHARDS / f"{name}.json").read_text() == text for name, text in first.items()
    )
    remaining = int(done.stdout.split(" of 24 samples to compute")[0].split()[-1])
    assert 0 < remaining < 24
    store, samples = TeacherStore(tmp_path / "cache"), read_mixture(load_config(path, RunConfig).data)
    assert len(store) == 2 * len({sample_key(sample) for sample in samples})  # some samples are alike
    written = [load_file(tmp_path / "cache" / SHARDS / f"{name}.safetensors")["keys"] for name in after]
    assert sum(map(len, written)) == len(store)  # and none is there twice
    # Nothing was left in the run's folder, so that the run can start.
    assert not path.with_suffix("").exists()
