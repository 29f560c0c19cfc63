"""Run the official scorers on awkward rows and keep their results: what tests/bench/test_official.py asserts.

    python -m benchmarks.official.run CHECKOUTS [NAME...]    folders OWNER+NAME at the commits of COMMITS

The official code is no part of this repository. MathVista's scorer needs the package `Levenshtein`.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.official.answers import chartqa, mathvista, mmvet, ok_vqa, refcoco_plus, textvqa, vqav2
from benchmarks.official.checkouts import COMMITS, Official
from benchmarks.official.choices import (
    ai2d,
    blink,
    mmb,
    mmmu,
    mmmu_pro,
    mmstar,
    realworldqa,
    seed_bench_2_plus,
)

OUTPUT = Path("tests/bench/data/official")


SCORERS: dict[str, Callable[[Official], dict[str, Any]]] = {
    "mmb": mmb,
    "mmmu": mmmu,
    "mmmu_pro": mmmu_pro,
    "mmstar": mmstar,
    "ai2d": ai2d,
    "chartqa": chartqa,
    "mathvista": mathvista,
    "blink": blink,
    "seed_bench_2_plus": seed_bench_2_plus,
    "realworldqa": realworldqa,
    "vqav2": vqav2,
    "ok_vqa": ok_vqa,
    "textvqa": textvqa,
    "refcoco_plus": refcoco_plus,
    "mmvet": mmvet,
}


def main(checkouts: Path, names: Sequence[str]) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    official = Official(checkouts)
    for name in names or SCORERS:
        with redirect_stdout(io.StringIO()):
            content = SCORERS[name](official)
        data = json.dumps({"commits": COMMITS, **content}, ensure_ascii=False, separators=(",", ":"))
        # No time and no name in the file: the same rows give the same bytes.
        (OUTPUT / f"{name}.json.gz").write_bytes(gzip.compress(data.encode(), 9, mtime=0))
        print(name, len(content["rows"]), (OUTPUT / f"{name}.json.gz").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
