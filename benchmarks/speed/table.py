"""From rounds to the committed result, and from it to the tables of docs/performance.md."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import CASES, PACKAGES, RIVAL_GOALS, ROOFLINE_GOAL, TORCH_GOAL
from benchmarks.speed.roofline import Reads, roof
from benchmarks.speed.rounds import Rounds, spread
from genrecal.core.manifest import installed_versions

# What decides which kernels there are.
_FLAGS = ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
_OURS = {"int8": "genrecal int8", "int4": "genrecal int4"}


def shares(rounds: Rounds, reads: dict[str, Reads]) -> dict[str, dict[str, Any]]:
    """Each of our builds against the roofs that the same round measured."""
    found = {}
    for name, one in reads.items():
        roofs = [
            roof(
                one,
                each["roofs"]["bandwidth"],
                {kernel: each["roofs"][kernel.name] for kernel in one.by_kernel},
            )
            for each in rounds
        ]
        found[name] = {
            "bytes": one.total,
            "kernels": {kernel.name: size for kernel, size in one.by_kernel.items()},
            "roof_tokens_s": roofs,
            "share": spread(
                each[name]["tokens_s"] / under["lower"] for each, under in zip(rounds, roofs, strict=True)
            ),
        }
    return found


def ratios(rounds: Rounds) -> dict[str, dict[str, dict[str, float]]]:
    """Ours over another engine, of the rounds' own ratios; above 1 ours is the faster one."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for precision, ours in _OURS.items():
        pairs = [
            (other, "tokens_s")
            for other, case in CASES.items()
            if case.kind == "torch" or (case.kind != "edge" and case.precision == precision)
        ]
        pairs += [("torch fp32", "prefill_s"), ("torch fp32", "vision_s")]
        for other, figure in pairs:
            if not all(ours in one and other in one for one in rounds):
                continue
            each = [one[ours][figure] / one[other][figure] for one in rounds]
            if figure != "tokens_s":
                each = [1 / value for value in each]
            found.setdefault(ours, {})[f"{figure} against {other}"] = spread(each)
    return found


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Each goal of each build, and whether it is reached."""
    found = {}
    for ours, each in result["ratios"].items():
        found[f"{ours}: share of the roof"] = result["roofline"][ours]["share"]["median"] >= ROOFLINE_GOAL
        for name, value in each.items():
            other = name.split(" against ")[1]
            goal = RIVAL_GOALS.get(CASES[other].kind, TORCH_GOAL)
            found[f"{ours}: {name}"] = value["median"] >= goal
    return found


def machine(threads: int) -> dict[str, Any]:
    """The processor with the flags that choose kernels, and how many threads all engines had."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "processor": platform.machine(),
        "model": fields.get("model name", ""),
        "family": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "flags": {flag: flag in flags for flag in _FLAGS},
        "threads": threads,
    }


def versions(packages: Path | None) -> dict[str, str]:
    """Of the project's packages, and of those that were measured beside it."""
    found = installed_versions()
    places = metadata.distributions(path=[str(packages)]) if packages else []
    names = {one.split("==")[0].replace("_", "-") for one in PACKAGES}
    # A distribution's own name has hyphens or underscores, as its makers like.
    found |= {f"{one.name} (packages)": one.version for one in places if one.name.replace("_", "-") in names}
    return found


def table(result: dict[str, Any]) -> str:
    """The tables of the document."""
    figures = result["figures"]
    lines = ["| decoding | tokens/s (lowest to highest) | of the roof | int8 build | int4 build |"]
    lines.append("|---|---|---|---|---|")
    for name in CASES:
        speed = figures[name]["tokens_s"]
        share = result["roofline"].get(name, {}).get("share")
        ours = [result["ratios"][one].get(f"tokens_s against {name}") for one in _OURS.values()]
        tokens = f"{speed['median']:.1f} ({speed['lowest']:.1f} to {speed['highest']:.1f})"
        cells = [name, tokens, _percent(share), *map(_times, ours)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | prefill of 512 tokens | an image of 448 x 448 |", "|---|---|---|"]
    for name, case in CASES.items():
        if case.reads_images:
            seconds = [f"{figures[name][key]['median']:.2f} s" for key in ("prefill_s", "vision_s")]
            against = [
                _times(result["ratios"].get(name, {}).get(f"{key} against torch fp32"))
                for key in ("prefill_s", "vision_s")
            ]
            cells = [", ".join(filter(None, pair)) for pair in zip(seconds, against, strict=True)]
            lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _times(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{_between(value, '{:.2f}')} x"


def _percent(value: dict[str, float] | None) -> str:
    return "" if value is None else _between(value, "{:.0%}")


def _between(value: dict[str, float], form: str) -> str:
    median, lowest, highest = (form.format(value[key]) for key in ("median", "lowest", "highest"))
    return f"{median} ({lowest} to {highest})"
