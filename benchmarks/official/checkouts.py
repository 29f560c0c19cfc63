"""Functions of the official scorers, taken by name out of files that are no part of this repository.

What a file would import (clients of APIs, whole kits) need not be there; who takes a function says what its
names mean. A function that would draw at random meets one that says so.
"""

from __future__ import annotations

import ast
import collections
import copy
import json
import math
import os
import random
import re
import statistics
import string
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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


# In the place of a hit: what the official code does instead of deciding.
LLM, DRAWS, FAILS = "llm", "draws", "fails"


class Drawn(Exception):
    """The official code draws at random."""


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


def draws(*_: Any) -> Any:
    raise Drawn


def lettered(options: Sequence[str]) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, options, strict=False))


def attempt(call: Callable[..., Any], *arguments: Any) -> int | float | str:
    try:
        return call(*arguments)
    except Drawn:
        return DRAWS
    except ZeroDivisionError:
        return FAILS
