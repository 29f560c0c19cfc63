"""An LLM as the judge, behind any OpenAI-compatible endpoint; its replies are kept on disk and replayed.

    item -> JudgePrompt -> chat completion -> a number from 0 to 1, else asked again with more heat

A figure that is compared with published ones needs MM-Vet's own prompt (`--judge-prompt FILE`) and its judge.
Beside the score stand what the hardened prompt gives, and what constant answers get under both.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.chat import CallFailed
from bench.judge import Grade, JudgeItem
from bench.judge_prompt import JudgePrompt, hardened, own_words
from bench.kept_replies import KeptReplies
from bench.null_model import null_scores
from genrecal.core.errors import BenchError

WORKERS = 4


class LLMJudge:
    """Grades through an endpoint, at most once for each item and run."""

    def __init__(
        self, kept: KeptReplies, *, prompts: Sequence[JudgePrompt] = (), control: bool = True
    ) -> None:
        """Args:
        kept: the judge model and its replies.
        prompts: at most one for MM-Vet's table and one for MM-Vet v2's; what is missing is in our own words.
        control: grade with the hardened prompt and grade constant answers too, once each.
        """
        self.kept, self.endpoint, self.control = kept, kept.endpoint, control
        self.prompts = {bordered: own_words(bordered=bordered) for bordered in (False, True)}
        self.prompts |= {prompt.bordered: prompt for prompt in prompts}
        self.hardened = hardened()

    @property
    def title(self) -> str:
        return f"MM-Vet (judge {self.endpoint.model})"

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "judge": self.endpoint.model,
            "base_url": self.endpoint.base_url,
            "prompt": self.prompts[False].name,
            "prompt_sha256": self.prompts[False].sha256,
            "prompt_v2": self.prompts[True].name,
            "prompt_v2_sha256": self.prompts[True].sha256,
            "max_tokens": self.endpoint.max_tokens,
        }

    def grade(self, items: Sequence[JudgeItem], *, run: int) -> list[Grade]:
        """A grade for each item, in their order.

        Raises:
            BenchError: the endpoint refuses every request, or none of them found a connection.
        """
        return self._grade_all(items, run, prompt=None)

    def beside(self, items: Sequence[JudgeItem]) -> Mapping[str, Any]:
        """What a score reports of its judge: who answered, the hardened reading, and the null model."""
        found: dict[str, Any] = {}
        if self.control:
            grades = self._grade_all(items, 0, prompt=self.hardened)
            known = [one.score for one in grades if one.score is not None]
            found["hardened"] = {
                "score": statistics.fmean(known) if known else None,
                "ungraded": len(grades) - len(known),
                "prompt_sha256": self.hardened.sha256,
            }
            found["null_model"] = {
                "prompt": null_scores(items, lambda asked: self._grade_all(asked, 0, prompt=None)),
                "hardened": null_scores(items, lambda asked: self._grade_all(asked, 0, prompt=self.hardened)),
            }
        return {**found, "served_models": sorted(self.kept.served)}

    def _grade_all(self, items: Sequence[JudgeItem], run: int, *, prompt: JudgePrompt | None) -> list[Grade]:
        """Items that are alike are asked once; `prompt` None: the one for the item's table."""
        asked = [(item, prompt or self.prompts[item.bordered]) for item in items]
        distinct = dict.fromkeys(asked)
        with ThreadPoolExecutor(WORKERS) as pool:
            grades = dict(
                zip(distinct, pool.map(lambda one: self._grade(*one, run=run), distinct), strict=True)
            )
        found = [grades[one] for one in asked]
        if found and all(grade.unreachable for grade in found):
            raise BenchError(
                f"the judge answers nothing ({found[0].reason})",
                where=self.endpoint.base_url,
                fix="Check the judge's address; the answers are kept, so the same command only judges again",
            )
        return found

    def _grade(self, item: JudgeItem, prompt: JudgePrompt, *, run: int) -> Grade:
        try:
            replies = self.kept.ask(
                lambda again: prompt.messages(item, again=again),
                usable=lambda reply: prompt.read(reply) is not None,
                max_tokens=self.endpoint.max_tokens,
                run=run,
                about={"prompt": prompt.name, "question": item.question},
            )
        except CallFailed as error:
            return Grade(score=None, reason=error.what, unreachable=error.unreachable)
        score = prompt.read(replies[-1])
        return Grade(score=score, reason=replies[-1] if score is not None else f"no grade in {replies[-1]!r}")
