"""Every benchmark, by the name that options, folders and scores call it."""

from __future__ import annotations

from bench.sets.mmbench import MMB, MMB_CN, MMB_CN_V11, MMB_V11
from bench.sets.mmmu import MMMU
from bench.sets.mmmu_pro import MMMU_PRO
from bench.sets.mmvet import MMVET, MMVET_V2
from bench.task import Task
from genrecal.core.errors import BenchError

TASKS: dict[str, Task] = {
    task.name: task for task in (MMB, MMB_CN, MMB_V11, MMB_CN_V11, MMVET, MMVET_V2, MMMU, MMMU_PRO)
}


def task_named(name: str) -> Task:
    """A benchmark by its name.

    Raises:
        BenchError: there is none of that name.
    """
    if name not in TASKS:
        raise BenchError(f"unknown set '{name}'", where="bench", fix=f"Known: {', '.join(TASKS)}")
    return TASKS[name]
