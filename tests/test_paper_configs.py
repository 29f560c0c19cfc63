"""configs/paper/ holds a run for every row of the paper's tables and figures, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import GotOcr2ImageProcessor, Qwen2VLImageProcessor

from genrecal.core.config import dump_config, load_config
from genrecal.figures.naming import parts_of, short_names
from genrecal.models.image_limits import limit_pixels
from genrecal.train.pairing import require_limits
from genrecal.train.settings import RunConfig
from genrecal.train.stages import METHODS, STAGES

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
BASE = "base.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a row of a table is trained with."""

    student: str
    teacher: str | None
    method: str = "genrecal"
    answer_only: bool = False
    without: str | None = None


def pairs(students: tuple[str, ...], teacher: str | None, **settings: object) -> set[Run]:
    return {Run(student=student, teacher=teacher, **settings) for student in students}  # type: ignore[arg-type]


INTERNVL = tuple(f"InternVL2_5-{size}" for size in ("8B", "4B", "2B", "1B"))
QWEN2_VL = ("Qwen2-VL-7B-Instruct", "Qwen2-VL-2B-Instruct")
BEST = "InternVL2_5-78B"
QWEN2_VL_72B = "Qwen2-VL-72B-Instruct"
COMPARED = ("minillm", "distillm", "llava-kd")
TABLES: dict[str, set[Run]] = {
    "Table 1": pairs(INTERNVL + QWEN2_VL, BEST),
    "Table 2": {
        Run(student="InternVL2_5-8B", teacher=teacher)
        for teacher in ("NVLM-D-72B", "InternVL2-Llama3-76B", QWEN2_VL_72B, BEST)
    },
    "Table 3": pairs(INTERNVL, BEST) | pairs(INTERNVL, BEST, method="genrecal-no-reg"),
    "Table 4": pairs(QWEN2_VL, QWEN2_VL_72B)
    | pairs(QWEN2_VL, None, method="sft")
    | {run for method in COMPARED for run in pairs(QWEN2_VL, QWEN2_VL_72B, method=method)},
    "Appendix G": pairs(QWEN2_VL[:1], BEST)
    | pairs(QWEN2_VL[:1], QWEN2_VL_72B)
    | pairs(QWEN2_VL[:1], None, method="sft")
    | {run for method in COMPARED for run in pairs(QWEN2_VL[:1], QWEN2_VL_72B, method=method)}
    | {run for method in COMPARED for run in pairs(QWEN2_VL[:1], BEST, method=method, answer_only=True)},
    # Every smaller student of the InternVL2.5 series below every teacher whose size the text names.
    "Figure 5": {
        run for place, teacher in enumerate((BEST, *INTERNVL[:3])) for run in pairs(INTERNVL[place:], teacher)
    },
    "Figure 10": pairs(INTERNVL[:1], BEST)
    | {
        Run(student=INTERNVL[0], teacher=BEST, without=domain)
        for domain in ("knowledge", "science_math", "chart_document")
    },
}
COUNTS = {
    "Table 1": 6,
    "Table 2": 4,
    "Table 3": 8,
    "Table 4": 10,
    "Appendix G": 9,
    "Figure 5": 10,
    "Figure 10": 4,
}
PAIR = "internvl2_5_8b_from_internvl2_5_78b.yaml"
PAPER_BATCHES = {"recalibrate": 4, "distill": 2, "finetune": 4}
# InternVL2.5 as published: tiles of an image beside the whole, and tokens of each.
TILES, TOKENS_OF_A_TILE = 12, 256
ROOM_FOR_TEXT = 1500
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != BASE)


def run_of(config: RunConfig) -> Run:
    excluded = config.data.exclude_domains
    assert len(excluded) <= 1
    for name in METHODS[config.method].stages:
        assert config.stage(name).exclude_domains == STAGES[name].exclude_domains
    return Run(
        student=config.student.name,
        teacher=config.teacher.name if config.teacher else None,
        method=config.method,
        answer_only=config.answer_only,
        without=min(excluded, default=None),
    )


def tokens_of_the_largest_image(name: str, max_pixels: int | None) -> int:
    """What a model as published makes of an image that reaches every limit."""
    if name not in (*QWEN2_VL, QWEN2_VL_72B):
        return (TILES + 1) * TOKENS_OF_A_TILE
    processor = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056)
    if max_pixels is not None:
        limit_pixels(processor, max_pixels)
    return processor.get_number_of_image_patches(9000, 9000, {}) // processor.merge_size**2


def test_the_tables_are_counted_as_in_the_paper() -> None:
    assert {name: len(runs) for name, runs in TABLES.items()} == COUNTS
    assert len(set().union(*TABLES.values())) == len(FILES) == 35


def test_every_run_has_one_file() -> None:
    found = [run_of(load_config(path, RunConfig)) for path in FILES]
    assert len(set(found)) == len(found)
    assert set(found) == set().union(*TABLES.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 7 and yaml.safe_load(text)["extends"]
    config = load_config(path, RunConfig)
    assert config.output == Path("runs") / path.stem
    assert config.student.parent == Path("models")
    named = set(re.findall(r"Table \d|Appendix G|Figure \d+", text.splitlines()[0]))
    assert named == {name for name, runs in TABLES.items() if run_of(config) in runs}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_settings_are_the_papers(path: Path) -> None:
    config = load_config(path, RunConfig)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 64, 0.05)
    assert config.recalibrator.answer_input == "features" and config.recalibrator.blocks == 2
    assert config.engine.zero_stage == 3 and config.engine.precision == "bf16"
    for name in METHODS[config.method].stages:
        assert name in config.stages, "the file leaves a stage of its method to the defaults"
        stage = config.stage(name)
        assert (stage.lr_start, stage.lr_end, stage.accumulation) == (1e-4, 1e-5, 16)
        if name in PAPER_BATCHES:
            assert stage.micro_batch == PAPER_BATCHES[name]
    last = config.stage(METHODS[config.method].stages[-1])
    assert "general_vqa" in (last.exclude_domains or ())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_papers_batches_on_a_papers_pair(method: str) -> None:
    """4 / 2 / 4, of which shorter methods have the end: those of as many stages take equal updates."""
    config = load_config(FOLDER / PAIR, RunConfig, [f"method={method}"])
    stages = METHODS[method].stages
    assert set(stages) <= set(config.stages), "the base leaves a stage to the defaults"
    batches = tuple(PAPER_BATCHES.values())[-len(stages) :]
    assert tuple(config.stage(name).micro_batch for name in stages) == batches
    assert {config.stage(name).accumulation for name in stages} == {16}


def test_the_base_names_every_stage() -> None:
    assert set(yaml.safe_load((FOLDER / BASE).read_text(encoding="utf-8"))["stages"]) == set(STAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_two_of_the_largest_images_fit(path: Path) -> None:
    config = load_config(path, RunConfig)
    names = [config.student.name, *(source.path.name for source in config.sources)]
    for name in names:
        tokens = tokens_of_the_largest_image(name, config.data.max_pixels)
        assert 2 * tokens + ROOM_FOR_TEXT <= config.data.max_tokens
    # No limit that serves none of the run's models: it would be refused.
    kinds = {True: Qwen2VLImageProcessor, False: GotOcr2ImageProcessor}
    require_limits(
        config.data, [SimpleNamespace(image_processor=kinds[name.startswith("Qwen2-VL")]()) for name in names]
    )


def test_without_the_limit_one_image_would_not_fit() -> None:
    assert tokens_of_the_largest_image(QWEN2_VL_72B, None) == 16384


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (PAIR, "all data"),
        ("internvl2_5_8b_from_internvl2_5_78b_without_knowledge.yaml", "without knowledge"),
        ("internvl2_5_8b_from_internvl2_5_78b_without_science_math.yaml", "without science & math"),
        ("internvl2_5_8b_from_internvl2_5_78b_without_chart_document.yaml", "without chart & document"),
    ],
)
def test_figure_10_names_the_runs_by_what_they_leave_out(name: str, data: str) -> None:
    saved = yaml.safe_load(dump_config(load_config(FOLDER / name, RunConfig)))
    assert parts_of(saved, short_names([saved]))["data"] == data


def test_the_base_is_no_run_of_its_own() -> None:
    from genrecal.core.errors import ConfigError

    with pytest.raises(ConfigError, match="'student': Field required"):
        load_config(FOLDER / BASE, RunConfig)
