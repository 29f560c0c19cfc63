"""Every benchmark, by the name that options, folders and scores call it."""

from __future__ import annotations

from bench.sets.ai2d import AI2D
from bench.sets.blink import BLINK
from bench.sets.chartqa import CHARTQA
from bench.sets.mathvista import MATHVISTA
from bench.sets.mmbench import MMB, MMB_CN, MMB_CN_V11, MMB_V11
from bench.sets.mmmu import MMMU
from bench.sets.mmmu_pro import MMMU_PRO
from bench.sets.mmstar import MMSTAR
from bench.sets.mmvet import MMVET, MMVET_V2
from bench.sets.ok_vqa import OK_VQA
from bench.sets.realworldqa import REALWORLDQA
from bench.sets.refcoco_plus import REFCOCO_PLUS
from bench.sets.seed_bench_2_plus import SEED_BENCH_2_PLUS
from bench.sets.textvqa import TEXTVQA
from bench.sets.vqav2 import VQAV2
from bench.task import Task
from genrecal.core.errors import BenchError

TASKS: dict[str, Task] = {
    "mmb": MMB,
    "mmb_cn": MMB_CN,
    "mmb_v11": MMB_V11,
    "mmb_cn_v11": MMB_CN_V11,
    "mmvet": MMVET,
    "mmvet_v2": MMVET_V2,
    "mmmu": MMMU,
    "mmmu_pro": MMMU_PRO,
    "mmstar": MMSTAR,
    "ai2d": AI2D,
    "chartqa": CHARTQA,
    "mathvista": MATHVISTA,
    "blink": BLINK,
    "seed_bench_2_plus": SEED_BENCH_2_PLUS,
    "realworldqa": REALWORLDQA,
    "vqav2": VQAV2,
    "ok_vqa": OK_VQA,
    "textvqa": TEXTVQA,
    "refcoco_plus": REFCOCO_PLUS,
}


def task_named(name: str) -> Task:
    """A benchmark by its name.

    Raises:
        BenchError: there is none of that name.
    """
    if name not in TASKS:
        raise BenchError(f"unknown set '{name}'", where="bench", fix=f"Known: {', '.join(TASKS)}")
    return TASKS[name]
