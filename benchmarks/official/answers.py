"""The official scorers of answers, boxes and grades on awkward rows."""

from __future__ import annotations

import json
import string
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.official.checkouts import KIT, LLM, LMMS, Official, attempt
from tests.bench import awkward


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

    hits = [attempt(by_lmms, row) for row in rows]
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
