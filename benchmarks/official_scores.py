"""Run the official scorers on awkward rows and keep their results: what tests/bench/test_official.py asserts.

    python -m benchmarks.official_scores CHECKOUTS [NAME...]    folders OWNER+NAME at the commits of COMMITS

The official code is no part of this repository. Of each file only the functions that score are taken, by
name, so that what they would import (clients of APIs, whole kits) need not be there; a function that would
ask an LLM or draw at random meets one that says so. MathVista's scorer needs `Levenshtein`.
"""

from __future__ import annotations

import ast
import collections
import copy
import gzip
import io
import json
import math
import os
import pickle
import random
import re
import statistics
import string
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.bench import awkward

KIT, LMMS = "open-compass+VLMEvalKit/vlmeval", "EvolvingLMMs-Lab+lmms-eval/lmms_eval"
COMMITS = {
    "open-compass+VLMEvalKit": "e8e78f05f3080fe28154f2130321f17951c3be94",
    "EvolvingLMMs-Lab+lmms-eval": "75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3",
    "MMMU-Benchmark+MMMU": "bb0b95a945998d91dfef37e969e07d49d1139438",
    "yuweihao+MM-Vet": "acde843e02dae30047bb456ee4a8ab28dee7e0ae",
    "zeyofu+BLINK_Benchmark": "2d6a779be4aa1ad0d38d7aa539bcb43b6dd81592",
    "lupantech+MathVista": "53d525874bdde205128e6b160b7357a88277d479",
    "MMStar-Benchmark+MMStar": "88f243ab4a39cb339530085c33aecb22819881a1",
    "GT-Vision-Lab+VQA": "a013f0043c1e2cdc995922dfe257f7149aa9af06",
    "google-research+pix2struct": "945f27e936c9464d9d7c133f1bd1f4f383be9e99",
}
OUTPUT = Path("tests/bench/data/official")
# In the place of a hit: what the official code does instead of deciding.
LLM, DRAWS, FAILS = "llm", "draws", "fails"


class Drawn(Exception):
    """The official code draws at random."""


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


class Official:
    """Functions of the official files."""

    def __init__(self, checkouts: Path) -> None:
        self.checkouts = checkouts

    def take(self, file: str, names: Iterable[str], **known: Any) -> types.SimpleNamespace:
        """The named functions, classes and constants of a file, with `known` for what they would import."""
        source = (self.checkouts / file).read_text(encoding="utf-8")
        if file.endswith("vqaEval.py"):
            # Python 2's statement.
            source = re.sub(r"^(\s*)print (\".*\")$", r"\1print(\2)", source, flags=re.MULTILINE)
        wanted = set(names)
        body = []
        for node in ast.parse(source).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            named = {target.id for target in targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                node.decorator_list, named = [], {node.name}
            if named & wanted:
                body.append(node)
                wanted -= named
        assert not wanted, f"{file} has no {wanted}"
        scope: dict[str, Any] = {**STANDARD, **known}
        exec(compile(ast.Module(body=body, type_ignores=[]), file, "exec"), scope)
        return types.SimpleNamespace(**scope)

    def kit_letters(self) -> Callable[[str, dict[str, str]], Any]:
        names = ("_VERBOSE_ANSWER_RE", "can_infer_option", "can_infer_text", "can_infer")
        return self.take(f"{KIT}/utils/matching_util.py", names).can_infer

    def kit_choice(self, options: Sequence[str], gold: str, reply: str) -> int | str:
        """One choice by the kit without a judge."""
        # The kit lower-cases what it is given.
        letter = self.kit_letters()(reply, dict(zip(string.ascii_uppercase, options, strict=False)))
        return LLM if letter is False else int(letter == gold)

    def lmms_letters(self) -> Callable[..., str]:
        names = ("_DEFAULT_CHOICES", "_ANSWER_PHRASES", "_FORMAT_PRIORITY", "extract_mcq_answer")
        return self.take(f"{LMMS}/tasks/_task_utils/mcq_extract.py", names).extract_mcq_answer


class Quiet:
    """A logger that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


STANDARD: dict[str, Any] = {
    "annotations": None,
    "ast": ast,
    "Counter": collections.Counter,
    "cp": copy,
    "deepcopy": copy.deepcopy,
    "defaultdict": collections.defaultdict,
    "Dict": dict,
    "eval_logger": Quiet(),
    "json": json,
    "List": list,
    "logger": Quiet(),
    "logging": Quiet(),
    "math": math,
    "np": np,
    "Optional": typing.Optional,
    "os": os,
    "osp": os.path,
    "pd": pd,
    "random": random,
    "rd": random,
    "re": re,
    "statistics": statistics,
    "string": string,
    "sys": sys,
    "tqdm": lambda these: these,
    "Any": Any,
}


def _draws(*_: Any) -> Any:
    raise Drawn


def _choices(options: Sequence[str]) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, options, strict=False))


def _attempt(call: Callable[..., Any], *arguments: Any) -> int | float | str:
    try:
        return call(*arguments)
    except Drawn:
        return DRAWS
    except ZeroDivisionError:
        return FAILS


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
                **_choices(options),
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
    own.parse_multi_choice_response.__globals__["random"] = types.SimpleNamespace(choice=_draws)
    shared = official.take(
        f"{LMMS}/tasks/_task_utils/mmmu_mcq_utils.py",
        ("parse_mmmu_multi_choice_response",),
        random=types.SimpleNamespace(choice=_draws),
    )
    lmms = official.take(
        f"{LMMS}/tasks/mmmu/utils.py",
        (*parse, *numbers, "evaluate_mmmu"),
        parse_mmmu_multi_choice_response=shared.parse_mmmu_multi_choice_response,
    )

    def by(module: Any, gold: Any, options: Sequence[str], reply: str) -> int:
        if options:
            letters = list(_choices(options))
            return int(
                module.eval_multi_choice(
                    gold, module.parse_multi_choice_response(reply, letters, _choices(options))
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
        "official": [_attempt(by, own, gold, options, reply) for _, options, gold, reply in rows],
        "vlmevalkit": [by_kit(gold, options, reply) for _, options, gold, reply in rows],
        "lmms": [_attempt(by_lmms, gold, options, reply) for _, options, gold, reply in rows],
    }


def mmmu_pro(official: Official) -> dict[str, Any]:
    rows = awkward.choice_rows(3, fewest=4, most=10)
    own = official.take(
        "MMMU-Benchmark+MMMU/mmmu-pro/evaluate.py",
        ("mmmu_process_results", "get_multi_choice_info", "parse_multi_choice_response"),
        random=types.SimpleNamespace(choice=_draws),
    )
    shared = official.take(
        f"{LMMS}/tasks/_task_utils/mmmu_mcq_utils.py",
        ("parse_mmmu_multi_choice_response",),
        random=types.SimpleNamespace(choice=_draws),
    )

    def by_own(options: Sequence[str], gold: str, reply: str) -> int:
        result = {"response": reply, "options": str(list(options)), "id": "x", "answer": gold}
        return int(own.mmmu_process_results(result)["if_right"])

    def by_lmms(options: Sequence[str], gold: str, reply: str) -> int:
        named = _choices(options)
        return int(shared.parse_mmmu_multi_choice_response(reply, list(named), named) == gold)

    return {
        "rows": rows,
        "official": [_attempt(by_own, *row[1:]) for row in rows],
        "vlmevalkit": [official.kit_choice(*row[1:]) for row in rows],
        "lmms": [_attempt(by_lmms, *row[1:]) for row in rows],
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
    lmms = official.take(f"{LMMS}/tasks/blink/utils.py", ("_extract_answer_letter", "blink_process_results"))

    def by_lmms(gold: str, reply: str) -> int:
        doc = {"answer": f"({gold})", "idx": "x", "sub_task": "x"}
        return int(lmms.blink_process_results(doc, [reply])["blink_acc"]["is_correct"])

    return {
        "mapped": mapped,
        "mapped_official": [int(row[4] == f"({row[3]})") for row in mapped],
        "rows": rows,
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


def chartqa(official: Official) -> dict[str, Any]:
    rows = awkward.short_rows(11)
    own = official.take("google-research+pix2struct/pix2struct/metrics.py", ("relaxed_correctness",))
    kit = official.take(
        f"{KIT}/dataset/utils/vqa_eval.py",
        ("relaxed_correctness", "process_line", "hit_calculate"),
        istype=lambda text, kind: False,  # the answer is a text here, not a list in a text
        listinstr=lambda names, text: any(name in text for name in names),
    )
    lmms = official.take(f"{LMMS}/tasks/chartqa/utils.py", ("relaxed_correctness", "chartqa_process_results"))

    def by_kit(gold: str, reply: str) -> int:
        line = kit.process_line({"answer": gold, "prediction": reply}, method="relaxed_accuracy")
        return int(kit.hit_calculate([line], "ChartQA_TEST")[0])

    def by_lmms(gold: str, reply: str) -> int:
        doc = {"answer": gold, "type": "human_test"}
        return int(lmms.chartqa_process_results(doc, [reply])["relaxed_overall"])

    return {
        "rows": rows,
        "official": [int(own.relaxed_correctness(gold, reply)) for _, gold, reply in rows],
        "vlmevalkit": [by_kit(gold, reply) for _, gold, reply in rows],
        "lmms": [by_lmms(gold, reply) for _, gold, reply in rows],
    }


def mathvista(official: Official) -> dict[str, Any]:
    from Levenshtein import distance

    rows = awkward.mathvista_rows(12)

    read = official.take(
        "lupantech+MathVista/evaluation/extract_answer.py", ("extract_answer",), demo_prompt=""
    )
    # Its own handler would turn our Asked into an empty extraction.
    read.extract_answer.__globals__["create_test_prompt"] = lambda *_: ""
    own = official.take(
        "lupantech+MathVista/evaluation/calculate_score.py",
        ("get_most_similar", "normalize_extracted_answer", "safe_equal"),
        distance=distance,
    )
    kit = official.take(
        f"{KIT}/dataset/utils/mathvista.py", ("list_to_dict", "post_check"), can_infer=official.kit_letters()
    )
    of_lmms = official.take(
        f"{LMMS}/tasks/mathvista/mathvista_evals.py",
        ("MathVistaEvaluator", "shot_examples"),
        distance=distance,
        DEMO_PROMPT="",
        ServerConfig=lambda **_: None,
        get_server=lambda **_: None,
    )
    evaluator = of_lmms.MathVistaEvaluator()

    def by_own(row: Sequence[Any]) -> int | str:
        _, kind, answer_type, choices, precision, gold, reply = row
        problem = {
            "question_type": kind if kind == "multi_choice" else "free_form",
            "answer_type": answer_type,
        }
        problem |= {"choices": choices, "query": "", "pid": "x"}
        asked: list[int] = []
        model = types.SimpleNamespace(get_response=lambda **_: asked.append(1) or "")
        extraction = read.extract_answer(model, reply, problem)
        if asked:
            return LLM
        answer = own.normalize_extracted_answer(extraction, choices, kind, answer_type, precision)
        return int(own.safe_equal(answer, gold))

    def by_lmms(row: Sequence[Any]) -> int | str:
        _, kind, answer_type, choices, precision, gold, reply = row
        problem = {"question_type": kind, "answer_type": answer_type, "choices": choices or [], "query": ""}
        asked: list[int] = []
        evaluator.get_chat_response = lambda *_, **__: asked.append(1) or ""
        extraction = evaluator.extract_answer(reply.strip(), problem, False)
        if asked:
            return LLM
        answer = evaluator.normalize_extracted_answer(extraction, choices, kind, answer_type, precision)
        return int(evaluator.safe_equal(answer, gold))

    def by_kit(row: Sequence[Any]) -> int | str:
        _, kind, answer_type, choices, _, gold, reply = row
        line = {"question_type": kind, "answer_type": answer_type, "answer": gold, "prediction": reply}
        if kind == "multi_choice":
            line |= {"choices": str(choices), "answer_option": string.ascii_uppercase[choices.index(gold)]}
        found = kit.post_check(line, prefetch=True)
        return int(kit.post_check({**line, "res": found}, prefetch=False)) if found else LLM

    return {
        "rows": rows,
        "official": [by_own(row) for row in rows],
        "vlmevalkit": [by_kit(row) for row in rows],
        "lmms": [by_lmms(row) for row in rows],
    }


def _vqa(official: Official, rows: list[list[Any]]) -> list[float]:
    """The challenge's class over all rows at once."""
    own = official.take("GT-Vision-Lab+VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py", ("VQAEval",))
    golds = {
        name: {
            "answers": [{"answer": answer, "answer_id": place} for place, answer in enumerate(answers)],
            "question_type": "what",
            "answer_type": "other",
        }
        for name, answers, _ in rows
    }
    replies = {name: {"answer": reply} for name, _, reply in rows}
    questions = types.SimpleNamespace(qa=golds, getQuesIds=lambda: list(golds))
    # To many places: the class rounds to two.
    evaluation = own.VQAEval(questions, types.SimpleNamespace(qa=replies), n=10)
    evaluation.evaluate()
    return [evaluation.evalQA[name] / 100 for name, _, _ in rows]


def _processor(official: Official) -> Any:
    return official.take(
        f"{LMMS}/tasks/_task_utils/vqa_eval_metric.py", ("EvalAIAnswerProcessor",)
    ).EvalAIAnswerProcessor


def vqav2(official: Official) -> dict[str, Any]:
    rows = awkward.annotated_rows(13)
    lmms = official.take(
        f"{LMMS}/tasks/vqav2/utils.py", ("vqav2_process_results",), EvalAIAnswerProcessor=_processor(official)
    )

    def by_lmms(answers: Sequence[str], reply: str) -> float:
        doc = {
            "question_id": 1,
            "answers": [{"answer": one, "answer_id": n} for n, one in enumerate(answers)],
        }
        return float(lmms.vqav2_process_results(doc, [reply])["exact_match"])

    return {
        "rows": rows,
        "official": _vqa(official, rows),
        "lmms": [by_lmms(answers, reply) for _, answers, reply in rows],
    }


def _list_of_answers(official: Official, task: str, rows: list[list[Any]]) -> list[float]:
    name = f"{task}_process_results"
    lmms = official.take(f"{LMMS}/tasks/{task}/utils.py", (name,), EvalAIAnswerProcessor=_processor(official))
    return [
        float(getattr(lmms, name)({"question_id": 1, "answers": list(answers)}, [reply])["exact_match"])
        for _, answers, reply in rows
    ]


def ok_vqa(official: Official) -> dict[str, Any]:
    rows = awkward.annotated_rows(14)
    return {
        "rows": rows,
        "official": _vqa(official, rows),
        "lmms": _list_of_answers(official, "ok_vqa", rows),
    }


def textvqa(official: Official) -> dict[str, Any]:
    rows = awkward.annotated_rows(15)
    marks = official.take(f"{KIT}/smp/misc.py", ("process_punctuation",)).process_punctuation
    kit = official.take(
        f"{KIT}/dataset/utils/vqa_eval.py",
        ("_process_digit_article", "process_answer", "process_line", "hit_calculate"),
        process_punctuation=marks,
        istype=lambda text, kind: True,
        listinstr=lambda names, text: any(name in text for name in names),
    )

    def by_kit(answers: Sequence[str], reply: str) -> float:
        line = kit.process_line({"answer": str(list(answers)), "prediction": reply})
        return float(kit.hit_calculate([line], "TextVQA_VAL")[0])

    return {
        "rows": rows,
        "official": _vqa(official, rows),
        "vlmevalkit": [by_kit(answers, reply) for _, answers, reply in rows],
        "lmms": _list_of_answers(official, "textvqa", rows),
    }


def refcoco_plus(official: Official) -> dict[str, Any]:
    rows = awkward.box_rows(16)
    lmms = official.take(
        f"{LMMS}/tasks/refcoco+/utils_rec.py",
        ("parse_float_sequence_within", "compute_iou", "compute_accuracy"),
    )
    kit = official.take(
        f"{KIT}/dataset/refcoco.py", ("RefCOCODataset",), ImageBaseDataset=object
    ).RefCOCODataset

    def by_lmms(row: Sequence[Any]) -> int:
        _, _, width, height, (left, top, across, down), reply = row
        gold = [left / width, top / height, (left + across) / width, (top + down) / height]
        return int(lmms.compute_accuracy(gold, lmms.parse_float_sequence_within(reply)))

    def by_kit(row: Sequence[Any]) -> int:
        _, _, width, height, (left, top, across, down), reply = row
        box = kit._parse_prediction(reply)
        box = None if box is None else kit._to_absolute(box, float(width), float(height))
        if box is None:
            return 0
        gold = np.array([left, top, left + across, top + down], dtype=float)
        return int(kit._compute_iou(box, gold) >= kit.IOU_THRESHOLD)

    hits = [_attempt(by_lmms, row) for row in rows]
    return {"rows": rows, "official": hits, "lmms": hits, "vlmevalkit": [by_kit(row) for row in rows]}


def mmvet(official: Official) -> dict[str, Any]:
    """The averages of both versions over grades that are there already; their judge is not asked."""
    rows = awkward.graded_rows(17)
    return {
        "rows": rows,
        "totals": {
            version: _mmvet(official, file, name, rows)
            for version, file, name in (
                ("v1", "mm-vet_evaluator.py", "mm-vet.json"),
                ("v2", "v2/mm-vet-v2_evaluator.py", "mm-vet-v2.json"),
            )
        },
    }


def _mmvet(official: Official, file: str, name: str, rows: list[list[Any]]) -> dict[str, float]:
    own = official.take(f"yuweihao+MM-Vet/{file}", ("load_metadata", "export_result"))
    with tempfile.TemporaryDirectory() as folder:
        metadata = {row[0]: {"question": "?", "answer": "x", "capability": row[1]} for row in rows}
        Path(folder, name).write_text(json.dumps(metadata))
        args = types.SimpleNamespace(
            use_sub_set=False,
            subset=None,
            mmvet_path=folder,
            mmvetv2_path=folder,
            num_run=2,
            decimal_places=10,
        )
        sub_set, _, data, counter, sets, set_counter, count, df, df2, names = own.load_metadata(args)
        # Names that its functions find at the top of the file when it is run.
        own.export_result.__globals__.update(
            counter=counter,
            len_data=count,
            sub_set=sub_set,
            subset=sub_set,
            cap_set_list=sets,
            cap_score_file=f"{folder}/a.csv",
            cap_int_score_file=f"{folder}/b.csv",
        )
        grades = {row[0]: {"score": row[2]} for row in rows}
        capabilities, combinations = own.export_result(args, "x", df, df2, grades, data, set_counter, names)
    one, other = capabilities.loc["x"], combinations.loc["x"]
    found = {str(key): float(one[key]) for key in one.index if key != "runs"}
    joined = {"+".join(sorted(str(key).split("_"))): float(other[key]) for key in other.index[:-3]}
    return found | {f"set {key}": value for key, value in joined.items()}


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

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
