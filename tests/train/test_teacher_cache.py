"""Filling a cache: what the teacher computes is what is stored; kills, other teachers and other data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genrecal.core.errors import ConfigError, DataError, TrainError
from genrecal.data.mixture import Mixture
from genrecal.models.processors import load_model, load_processor
from genrecal.train.recording import Stored
from genrecal.train.settings import RunConfig
from genrecal.train.teacher_cache import check_caches, serves, stored_teachers
from genrecal.train.teacher_fingerprint import cache_folder
from genrecal.train.teacher_store import SHARDS, finished_shards, question_key, sample_key
from tests.tiny import TinyData, TinyPair, write_data
from tests.train.cache_parts import cached_config, live_features, mixture_of

pytestmark = pytest.mark.usefixtures("one_rank")

SAMPLES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """No, one and two images, one and two turns."""
    return write_data(tmp_path_factory.mktemp("cached") / "data", samples=SAMPLES)


@pytest.fixture(scope="module")
def filled(tiny_pair: TinyPair, data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A config whose cache is full; tests copy it."""
    config = cached_config(tmp_path_factory.mktemp("filled"), tiny_pair, data.path)
    open_stage(config)
    return config


def open_stage(config: RunConfig, name: str = "distill", samples: Mixture | None = None) -> list[Stored]:
    return stored_teachers(config, config.plan(name), samples or mixture_of(config))


def moved(config: RunConfig, root: Path, **changes: Any) -> RunConfig:
    """The same config with a copy of its cache."""
    assert config.teacher_cache is not None
    shutil.copytree(config.teacher_cache.path, root / "cache")
    cache = config.teacher_cache.model_copy(update={"path": root / "cache"})
    return config.model_copy(update={"teacher_cache": cache} | changes)


def shard_times(config: RunConfig) -> dict[str, int]:
    folder = cache_folder(config, 0) / SHARDS
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recalibrator": {"layers": [0.5, 1.0]}, "teacher_cache": {"question_features": True}},
        {"data": {"max_tiles": 1}, "teacher_cache": {"batch": 1}},
    ],
)
def test_the_store_holds_what_the_live_teacher_computes(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Each sample alone in a batch, without padding; also the questions where they are wanted."""
    config = cached_config(tmp_path, tiny_pair, data.path, **changes)
    asked = bool(changes.get("teacher_cache", {}).get("question_features"))
    (stored,) = open_stage(config, "recalibrate" if asked else "distill")
    depths = tuple(config.recalibrator.layers)
    for index, sample in enumerate(mixture_of(config)):
        answer, question = live_features(tiny_pair.teacher, sample, depths, config.data)
        key = sample_key(sample)
        read = stored.store.read(key)
        assert torch.allclose(read.values, answer, atol=1e-5)
        of_question = stored.store.read(question_key(key))
        # Two samples' questions are for the figures.
        assert (of_question is not None) == (asked or index < 2)
        if of_question is not None:
            assert torch.allclose(of_question.values, question, atol=1e-5)
            assert stored.store.record(key).question_length == len(question)


def test_a_full_cache_is_not_filled_again(filled: RunConfig, tmp_path: Path) -> None:
    config = moved(filled, tmp_path)
    before = shard_times(config)
    open_stage(config)
    assert shard_times(config) == before


def test_what_is_missing_is_added_and_nothing_else(filled: RunConfig, tmp_path: Path) -> None:
    """As for another student's data, or behind a kill: some samples are there, some are not."""
    config = moved(filled, tmp_path)
    folder = cache_folder(config, 0) / SHARDS
    (stored,) = open_stage(config)
    before = {
        index: stored.store.read(sample_key(sample)).values.clone()
        for index, sample in enumerate(mixture_of(config))
    }
    for path in folder.iterdir():
        path.unlink()
    chosen = np.arange(SAMPLES) % 3 == 0
    open_stage(config, samples=mixture_of(config).only(chosen))
    half = shard_times(config)
    (stored,) = open_stage(config)
    after = shard_times(config)
    assert half.items() < after.items()
    assert len(stored.store) == SAMPLES + 2 + 1  # two questions of all, one of the part that is none of these
    for index, sample in enumerate(mixture_of(config)):
        assert torch.allclose(stored.store.read(sample_key(sample)).values, before[index], atol=1e-5)


def test_a_killed_fill_goes_on_behind_its_shards(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes between a shard and its JSON file: it is written anew, no sample is there twice."""
    from genrecal.train import teacher_store

    class Killed(Exception):
        pass

    def dies(path: Path, value: Any) -> None:
        if path.stem.endswith("000002"):
            raise Killed
        write(path, value)

    write = teacher_store.write_json
    config = cached_config(tmp_path, tiny_pair, data.path)
    monkeypatch.setattr(
        teacher_store.ShardWriter, "__init__", _with_small_shards(teacher_store.ShardWriter.__init__)
    )
    monkeypatch.setattr(teacher_store, "write_json", dies)
    with pytest.raises(Killed):
        open_stage(config)
    folder = cache_folder(config, 0)
    assert len(finished_shards(folder)) == 2
    assert len(list((folder / SHARDS).glob("*.safetensors"))) == 3
    monkeypatch.setattr(teacher_store, "write_json", write)
    before = {name: time for name, time in shard_times(config).items() if not name.startswith("0000-000002")}
    (stored,) = open_stage(config)
    after = shard_times(config)
    assert before.items() < after.items()
    written = sum(
        len(teacher_store._table(folder / SHARDS / f"{name}.safetensors", 0)[0])
        for name in finished_shards(folder)
    )
    assert written == len(stored.store) == SAMPLES + 2


def _with_small_shards(init: Any) -> Any:
    def smaller(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options | {"shard_bytes": 5000})

    return smaller


def test_the_fingerprint_follows_content(filled: RunConfig, tmp_path: Path) -> None:
    """A copied teacher is the same; weight files that have not changed are not read again."""
    assert filled.teacher is not None
    teacher = tmp_path / "elsewhere"
    shutil.copytree(filled.teacher, teacher)
    config = moved(filled, tmp_path, teacher=teacher)
    before = shard_times(config)
    check_caches(config)
    open_stage(config)
    assert shard_times(config) == before
    hashes = json.loads((cache_folder(config, 0) / "hashes.json").read_text())
    assert set(hashes) == {str(teacher / "model.safetensors")}


def change_weights(folder: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] += 1
    model.save_pretrained(folder)


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"truncation": None, "padding": None, "normalizer": {"type": "NFC"}})
    )


def change_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weights, r"weights \(model\.safetensors\)"),
        (change_tokenizer, r"teacher files \(tokenizer\.json\)"),
        (change_template, r"teacher files \(chat_template\.jinja\)"),
    ],
)
def test_another_teacher_is_refused_and_named(
    filled: RunConfig, tmp_path: Path, change: Any, named: str
) -> None:
    assert filled.teacher is not None
    teacher = tmp_path / "teacher"
    shutil.copytree(filled.teacher, teacher)
    change(teacher)
    config = moved(filled, tmp_path, teacher=teacher)
    with pytest.raises(ConfigError, match=rf"cache.*{named}\. Name another folder"):
        open_stage(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"max_tiles": 2}}, "data.max_tiles was None, is 2"),
        ({"data": {"max_pixels": 9999}}, "data.max_pixels was None, is 9999"),
        ({"teacher_cache": {"dtype": "bf16"}}, "teacher_cache.dtype was fp32, is bf16"),
        ({"engine": {"precision": "bf16", "zero_stage": 1}}, "engine.precision was fp32, is bf16"),
        ({"recalibrator": {"layers": [0.5]}}, r"depths was \[1.0\], is \[0.5, 1.0\]"),
    ],
)
def test_other_settings_are_refused_before_a_rank_starts(
    filled: RunConfig, tiny_pair: TinyPair, data: TinyData, tmp_path: Path, changes: Any, named: str
) -> None:
    moved(filled, tmp_path)
    config = cached_config(tmp_path, tiny_pair, data.path, **changes)
    with pytest.raises(ConfigError, match=named):
        check_caches(config)


def test_a_cache_with_more_depths_serves_a_run_that_reads_fewer(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path
) -> None:
    more = cached_config(tmp_path, tiny_pair, data.path, recalibrator={"layers": [0.5, 1.0]})
    (both,) = open_stage(more)
    (last,) = open_stage(cached_config(tmp_path, tiny_pair, data.path))
    sample = mixture_of(more)[2]
    processor = load_processor(tiny_pair.teacher)
    whole, part = (one(sample, processor, [], max_tokens=99).features.answer.values for one in (both, last))
    assert whole.shape[1] == 2 and part.shape[1] == 1
    assert torch.equal(whole[:, 1:], part)


def test_a_folder_with_something_else_is_refused(tiny_pair: TinyPair, data: TinyData, tmp_path: Path) -> None:
    config = cached_config(tmp_path, tiny_pair, data.path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no teacher features"):
        check_caches(config)


def test_a_replaced_image_is_found(tiny_pair: TinyPair, tmp_path: Path) -> None:
    """Its name, and so the sample's key, is what it was."""
    data = write_data(tmp_path / "data", samples=4)
    config = cached_config(tmp_path, tiny_pair, data.path)
    open_stage(config)
    sample = next(sample for sample in mixture_of(config) if sample.images)
    with Image.open(sample.images[0]) as picture:
        Image.new("RGB", picture.size, "red").save(sample.images[0])
    with pytest.raises(
        ConfigError, match=rf"'{sample.id}' from other tokens or pixels than the teacher reads"
    ):
        open_stage(config)


def test_a_sample_that_is_not_there_is_named_with_the_command(filled: RunConfig) -> None:
    (stored,) = open_stage(filled)
    assert filled.teacher is not None
    processor = load_processor(filled.teacher)
    sample = mixture_of(filled)[5]
    unknown = replace(sample, turns=(replace(sample.turns[0], text="?"), *sample.turns[1:]))
    with pytest.raises(DataError, match=rf"'{sample.id}'.*not in .*genrecal cache CONFIG"):
        stored(unknown, processor, [], max_tokens=99)
    asking = replace(stored, questions=True)
    with pytest.raises(DataError, match="features of its question are not in"):
        asking(sample, processor, [], max_tokens=99)


def test_an_altered_shard_stops_the_run(filled: RunConfig, tmp_path: Path) -> None:
    config = moved(filled, tmp_path)
    shard = next((cache_folder(config, 0) / SHARDS).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(TrainError, match=shard.name):
        open_stage(config)


def test_features_that_are_not_finite_name_their_sample(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_pair.teacher, teacher)
    model = load_model(teacher)
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = torch.nan
    model.save_pretrained(teacher)
    config = cached_config(tmp_path, tiny_pair, data.path, teacher=str(teacher))
    with pytest.raises(TrainError, match=r"'tiny-\d+' of .*not finite"):
        open_stage(config)


def test_several_teachers_have_their_folders_and_their_domains(
    tiny_pair: TinyPair, data: TinyData, tmp_path: Path
) -> None:
    """Samples that a teacher does not teach are not computed for it, but for the figures of the first one."""
    routes = (["knowledge"], ["science_math", "chart_document"])
    teachers = [
        {"path": str(path), "domains": route}
        for path, route in zip((tiny_pair.teacher, tiny_pair.student), routes, strict=True)
    ]
    config = cached_config(tmp_path, tiny_pair, data.path, teachers=teachers)
    samples = mixture_of(config)
    for place, stored in enumerate(open_stage(config)):
        assert cache_folder(config, place) == tmp_path / "cache" / f"teacher-{place}"
        processor = load_processor(config.sources[place].path)
        for index, sample in enumerate(samples):
            held = stored.store.record(sample_key(sample)) is not None
            assert held == (sample.domain in routes[place] or (place == 0 and index < 2))
            row = stored(sample, processor, [], max_tokens=99)
            assert bool(row.features.answer.values.any()) == held
            assert len(row.features.answer.values) == len(row.answer_ids)


def test_samples_that_cannot_be_read_are_left_to_the_stage(tiny_pair: TinyPair, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", samples=4)
    broken = tmp_path / "data" / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    config = cached_config(tmp_path, tiny_pair, data.path)
    with pytest.raises(DataError, match=r"2\.png"):
        open_stage(config)
    skipping = cached_config(tmp_path, tiny_pair, data.path, data={"on_bad": "skip", "max_bad": 1})
    (stored,) = open_stage(skipping)
    held = [stored.store.record(sample_key(sample)) is not None for sample in mixture_of(skipping)]
    assert held == [True, True, False, True]


def test_what_a_cache_serves(tiny_pair: TinyPair, data: TinyData, tmp_path: Path) -> None:
    def served(**changes: Any) -> list[bool]:
        config = cached_config(tmp_path, tiny_pair, data.path, **changes)
        return [
            serves(config, config.plan(name))
            for name in ("recalibrate", "recalibrate-no-reg", "distill", "finetune")
        ]

    assert served() == [False, True, True, False]
    assert served(teacher_cache={"question_features": True}) == [True, True, True, False]
    assert served(objective={"regularize_in_distill": True}) == [False, True, False, False]
    assert served(teacher_cache=None) == [False] * 4
    with pytest.raises(ValueError, match="the method 'uld' has none"):
        cached_config(tmp_path, tiny_pair, data.path, method="uld")
