"""The official scorers of choices on awkward rows."""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.official.checkouts import KIT, LLM, LMMS, Official, Quiet, attempt, draws, lettered
from tests.bench import awkward


def mmb(official: Official) -> dict[str, Any]:
    """CircularEval of the kit without a judge, and of lmms-eval with one that is asked and counted wrong."""
    rows = awkward.circular_rows(1)
    kit = official.take(
        f"{KIT}/dataset/utils/multiple_choice.py",
        (
            "build_choices",
            "prefetch_answer",
            "prefetch_circular_group",
            "mcq_circular_eval",
            "report_acc",
            "MMB_abbrs",
        ),
        can_infer=official.kit_letters(),
        istype=lambda value, kind: isinstance(value, kind | np.integer),
        load=lambda path: pickle.loads(Path(path).read_bytes()),
        dump=lambda value, path: Path(path).write_bytes(pickle.dumps(value)),
        get_pred_file_format=lambda: "pkl",
        timestr=lambda: f"official-scores-{os.getpid()}",
    )
    data = pd.DataFrame(
        [
            {
                "index": index,
                "question": "?",
                **{letter: np.nan for letter in "ABCD"},
                **lettered(options),
                "answer": gold,
                "prediction": reply,
                "category": f"skill {index % 7}",
                "l2-category": f"ability {index % 3}",
                "split": "dev",
            }
            for index, options, gold, reply in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        done = kit.mcq_circular_eval(None, data.copy(), data, 1, f"{folder}/result.pkl", "MMBench")
        Path(f"/tmp/official-scores-{os.getpid()}.pkl").unlink(missing_ok=True)
    report = kit.report_acc(done)
    of_lmms = official.take(f"{LMMS}/tasks/mmbench/mmbench_evals.py", ("MMBench_Evaluator",))
    evaluator = of_lmms.MMBench_Evaluator()
    evaluator.extract_answer_from_item = lambda item: (None, "an LLM would be asked")
    groups = data.assign(question=data["index"] % 10**6).groupby("question", sort=False)
    answers = dict(zip(data["index"], data["answer"], strict=True))
    hits = {str(question): evaluator.eval_sub_data(group, answers) for question, group in groups}
    kit_hits = {str(index): int(hit) for index, hit in zip(done["index"], done["hit"], strict=True)}
    return {
        "rows": rows,
        "official": kit_hits,
        "lmms": hits,
        "totals": {name: float(report[name].iloc[0]) for name in report if name != "split"},
    }


def mmmu(official: Official) -> dict[str, Any]:
    rows = awkward.open_rows(2)
    parse = ("parse_multi_choice_response", "parse_open_response", "eval_multi_choice", "eval_open")
    numbers = ("check_is_number", "normalize_str", "extract_numbers")
    own = official.take("MMMU-Benchmark+MMMU/mmmu/utils/eval_utils.py", (*parse, *numbers))
    own.parse_multi_choice_response.__globals__["random"] = types.SimpleNamespace(choice=draws)
    shared = official.take(
        f"{LMMS}/tasks/_task_utils/mmmu_mcq_utils.py",
        ("parse_mmmu_multi_choice_response",),
        random=types.SimpleNamespace(choice=draws),
    )
    lmms = official.take(
        f"{LMMS}/tasks/mmmu/utils.py",
        (*parse, *numbers, "evaluate_mmmu"),
        parse_mmmu_multi_choice_response=shared.parse_mmmu_multi_choice_response,
    )

    def by(module: Any, gold: Any, options: Sequence[str], reply: str) -> int:
        if options:
            letters = list(lettered(options))
            return int(
                module.eval_multi_choice(
                    gold, module.parse_multi_choice_response(reply, letters, lettered(options))
                )
            )
        return int(module.eval_open(gold, module.parse_open_response(reply)))

    def by_lmms(gold: Any, options: Sequence[str], reply: str) -> int:
        if options:
            return by(lmms, gold, options, reply)
        parsed = lmms.parse_open_response(reply)
        sample = {
            "id": "x",
            "answer": gold,
            "parsed_pred": [str(parsed[0]) if parsed else ""],
            "question_type": "open",
        }
        return int(lmms.evaluate_mmmu([sample])[1]["acc"])

    def by_kit(gold: Any, options: Sequence[str], reply: str) -> int | str:
        if options:
            return official.kit_choice(options, gold, reply)
        return official.kit_choice([str(gold), "Other Answers"], "A", reply)

    return {
        "rows": rows,
        "official": [attempt(by, own, gold, options, reply) for _, options, gold, reply in rows],
        "vlmevalkit": [by_kit(gold, options, reply) for _, options, gold, reply in rows],
        "lmms": [attempt(by_lmms, gold, options, reply) for _, options, gold, reply in rows],
    }


def mmmu_pro(official: Official) -> dict[str, Any]:
    rows = awkward.choice_rows(3, fewest=4, most=10)
    own = official.take(
        "MMMU-Benchmark+MMMU/mmmu-pro/evaluate.py",
        ("mmmu_process_results", "get_multi_choice_info", "parse_multi_choice_response"),
        random=types.SimpleNamespace(choice=draws),
    )
    shared = official.take(
        f"{LMMS}/tasks/_task_utils/mmmu_mcq_utils.py",
        ("parse_mmmu_multi_choice_response",),
        random=types.SimpleNamespace(choice=draws),
    )

    def by_own(options: Sequence[str], gold: str, reply: str) -> int:
        result = {"response": reply, "options": str(list(options)), "id": "x", "answer": gold}
        return int(own.mmmu_process_results(result)["if_right"])

    def by_lmms(options: Sequence[str], gold: str, reply: str) -> int:
        named = lettered(options)
        return int(shared.parse_mmmu_multi_choice_response(reply, list(named), named) == gold)

    return {
        "rows": rows,
        "official": [attempt(by_own, *row[1:]) for row in rows],
        "vlmevalkit": [official.kit_choice(*row[1:]) for row in rows],
        "lmms": [attempt(by_lmms, *row[1:]) for row in rows],
    }


def mmstar(official: Official) -> dict[str, Any]:
    """MMStar's evaluator gives sums alone: each row is scored beside one wrong row of every sub-skill."""
    rows = awkward.choice_rows(4, fewest=4, most=4)
    kept: list[dict[str, float]] = []
    tables: list[pd.DataFrame] = []
    own = official.take(
        "MMStar-Benchmark+MMStar/eval/vlmeval/evaluate/mmstar.py",
        ("MMStar_eval",),
        load=lambda _: tables[-1],
        dump=lambda value, _: kept.append(dict(value)),
        get_logger=lambda _: Quiet(),
    )
    lmms = official.take(f"{LMMS}/tasks/mmstar/utils.py", ("eval_type_dict",))
    skills = [(category, skill) for category, of in lmms.eval_type_dict.items() for skill in of]

    def table(these: Sequence[tuple[str, str, str, str]]) -> dict[str, float]:
        columns = ["category", "l2_category", "answer", "prediction"]
        tables.append(pd.DataFrame(these, columns=columns).assign(bench=""))
        own.MMStar_eval("x.xlsx")
        return kept[-1]

    fillers = [(*skill, "A", "no") for skill in skills]
    hits = [
        round(table([*fillers, (*skills[0], gold, reply)])["final score"] * 1500)
        for _, _, gold, reply in rows
    ]
    whole = [(*skills[number % 18], gold, reply) for number, (_, _, gold, reply) in enumerate(rows)]
    letters = official.lmms_letters()
    return {
        "rows": rows,
        "skills": skills,
        "official": hits,
        "vlmevalkit": [official.kit_choice(*row[1:]) for row in rows],
        "lmms": [int(letters(reply, choices=list("ABCD")) == gold) for _, _, gold, reply in rows],
        "totals": {"right": round(table(whole)["final score"] * 1500)},
    }


def ai2d(official: Official) -> dict[str, Any]:
    rows = awkward.choice_rows(5, fewest=3, most=4)
    lmms = official.take(
        f"{LMMS}/tasks/ai2d/utils.py", ("MultiChoiceRegexFilter",), ExtendedRegexFilter=object
    )
    lmms.MultiChoiceRegexFilter.__init__ = lambda self: None
    metric = official.take(f"{LMMS}/api/metrics.py", ("exact_match_hf_evaluate",)).exact_match_hf_evaluate

    def by_lmms(gold: str, reply: str) -> int:
        (read,) = lmms.MultiChoiceRegexFilter().apply([[reply]], [{}])
        found = metric([read], [gold], ignore_case=True, ignore_punctuation=True)
        return int(found["exact_match"])

    kit = [official.kit_choice(*row[1:]) for row in rows]
    return {
        "rows": rows,
        "official": kit,
        "vlmevalkit": kit,
        "lmms": [by_lmms(gold, reply) for _, _, gold, reply in rows],
    }


def seed_bench_2_plus(official: Official) -> dict[str, Any]:
    rows = awkward.choice_rows(6, fewest=4, most=4)
    lmms = official.take(
        f"{LMMS}/tasks/seedbench_2_plus/utils.py", ("seed_process_result", "seed_aggregation_result")
    )

    def by_lmms(gold: str, reply: str) -> int:
        doc = {"answer": gold, "question_image_type": "chart", "question_id": "x"}
        result = lmms.seed_process_result(doc, [reply])
        return int(lmms.seed_aggregation_result([result["seedbench_2_plus_all"]]))

    kit = [official.kit_choice(*row[1:]) for row in rows]
    return {
        "rows": rows,
        "official": kit,
        "vlmevalkit": kit,
        "lmms": [by_lmms(gold, reply) for _, _, gold, reply in rows],
    }


def blink(official: Official) -> dict[str, Any]:
    """The official total over what its LLM answered, and the kits' readings of replies."""
    mapped, rows = awkward.mapped_rows(7), awkward.choice_rows(8, fewest=2, most=4)
    own = official.take(
        "zeyofu+BLINK_Benchmark/eval/evaluate.py", ("eval_prediction",), subtasks=awkward.BLINK_TASKS
    )
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("val_predictions").mkdir()
            Path("val_answers.json").write_text(json.dumps({row[0]: f"({row[3]})" for row in mapped}))
            Path("val_predictions/x.json").write_text(json.dumps({row[0]: row[4] for row in mapped}))
            totals = own.eval_prediction("val", "x")
        finally:
            os.chdir(here)
    # What the official code makes of a reply: its own letter, or what its LLM says.
    own_reading = official.take(
        "zeyofu+BLINK_Benchmark/eval/test_benchmark.py",
        ("analyze_answer",),
        match_multiple_choice=lambda *_: LLM,
    ).analyze_answer

    def by_own(options: list[str], gold: str, reply: str) -> int | str:
        letters = [f"({letter})" for letter in "ABCDE"[: len(options)]]
        read = own_reading({"question": "?", "choices": options}, reply, letters)
        return LLM if read == LLM else int(read == f"({gold})")

    lmms = official.take(f"{LMMS}/tasks/blink/utils.py", ("_extract_answer_letter", "blink_process_results"))

    def by_lmms(gold: str, reply: str) -> int:
        doc = {"answer": f"({gold})", "idx": "x", "sub_task": "x"}
        return int(lmms.blink_process_results(doc, [reply])["blink_acc"]["is_correct"])

    return {
        "mapped": mapped,
        "mapped_official": [int(row[4] == f"({row[3]})") for row in mapped],
        "rows": rows,
        "own": [by_own(*row[1:]) for row in rows],
        "vlmevalkit": [official.kit_choice(*row[1:]) for row in rows],
        "lmms": [by_lmms(gold, reply) for _, _, gold, reply in rows],
        "totals": totals,
    }


def realworldqa(official: Official) -> dict[str, Any]:
    """Half choices, half short answers, as the set has both."""
    choices, short = awkward.choice_rows(9, fewest=2, most=4), awkward.short_rows(10)
    rows = choices[::2] + [
        [f"open {name}", [], gold.strip(), reply] for name, gold, reply in short[::2] if gold.strip()
    ]
    package = types.ModuleType("lmms_eval.tasks._task_utils.mcq_extract")
    package.extract_mcq_answer = official.lmms_letters()  # type: ignore[attr-defined]
    for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[package.__name__] = package
    lmms = official.take(f"{LMMS}/tasks/realworldqa/utils.py", ("realworldqa_process_results",))

    def by_lmms(gold: str, reply: str) -> int:
        return int(lmms.realworldqa_process_results({"answer": gold}, [reply])["exact_match"])

    hits = [by_lmms(gold, reply) for _, _, gold, reply in rows]
    kit = [official.kit_choice(*row[1:]) for row in rows if row[1]]
    return {"rows": rows, "official": hits, "lmms": hits, "vlmevalkit": kit}
