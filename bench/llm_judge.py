"""An LLM as the judge, behind any OpenAI-compatible endpoint; its replies are kept on disk and replayed.

    item -> JudgePrompt -> chat completion -> a number from 0 to 1, else asked again with more heat

A figure that is compared with published ones needs MM-Vet's own prompt (`--judge-prompt FILE`) and its judge.
Beside the score stand what the hardened prompt gives, and what constant answers get under both.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from bench.chat import CallFailed, ChatClient, Endpoint
from bench.journal import append_lines, read_lines
from bench.judge import Grade, JudgeItem
from bench.judge_prompt import JudgePrompt, hardened, own_words
from bench.null_model import null_scores
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_bytes

ATTEMPTS = 5  # replies that hold no grade, before the item stays ungraded
MORE_HEAT = 0.5  # added to the temperature for each further attempt, as the official evaluator does
WORKERS = 4


class LLMJudge:
    """Grades through an endpoint, at most once for each item and run: replies are replayed from `cache`."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: Path,
        *,
        prompts: Sequence[JudgePrompt] = (),
        replay_only: bool = False,
        control: bool = True,
    ) -> None:
        """Args:
        endpoint: the judge model.
        cache: a JSONL file, made where it is missing; runs may share it, one at a time.
        prompts: at most one for MM-Vet's table and one for MM-Vet v2's; what is missing is in our own words.
        replay_only: make no call; what the cache lacks stays ungraded.
        control: grade with the hardened prompt and grade constant answers too, once each.
        """
        self.endpoint, self.cache, self.replay_only, self.control = endpoint, cache, replay_only, control
        self.prompts = {bordered: own_words(bordered=bordered) for bordered in (False, True)}
        self.prompts |= {prompt.bordered: prompt for prompt in prompts}
        self.hardened = hardened()
        self.served: set[str] = set()
        self._client: ChatClient | None = None
        self._replies: dict[str, list[str]] = {}
        self._lock = Lock()
        for line in read_lines(cache):
            self._replies[line["key"]] = line["replies"]
            self.served |= set(line.get("served", ()))

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
        return {**found, "served_models": sorted(self.served)}

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
        first = prompt.messages(item, again=False)
        asked = [self.endpoint.base_url, self.endpoint.model, self.endpoint.max_tokens, run, first]
        key = sha256_bytes(json.dumps(asked).encode())
        replies = self._replies.get(key)
        if replies is None and self.replay_only:
            return Grade(score=None, reason="not among the kept replies")
        # Replies without a grade are kept as a record, and asked for again where that is allowed.
        if replies is None or (prompt.read(replies[-1]) is None and not self.replay_only):
            try:
                replies, served = self._ask(item, prompt)
            except CallFailed as error:
                # Not kept: the next run of the same command asks again.
                return Grade(score=None, reason=error.what, unreachable=error.unreachable)
            with self._lock:
                self._replies[key] = replies
                self.served |= served
                line = {
                    "key": key,
                    "run": run,
                    "prompt": prompt.name,
                    "question": item.question,
                    "replies": replies,
                    "served": sorted(served),
                }
                append_lines(self.cache, [line])
        score = prompt.read(replies[-1])
        return Grade(score=score, reason=replies[-1] if score is not None else f"no grade in {replies[-1]!r}")

    def _ask(self, item: JudgeItem, prompt: JudgePrompt) -> tuple[list[str], set[str]]:
        """The replies up to the first with a grade, at most ATTEMPTS; and the models that gave them."""
        with self._lock:
            self._client = self._client or ChatClient(self.endpoint)
        replies: list[str] = []
        served: set[str] = set()
        for attempt in range(ATTEMPTS):
            reply = self._client.complete(
                prompt.messages(item, again=attempt > 0),
                max_tokens=self.endpoint.max_tokens,
                temperature=min(MORE_HEAT * max(attempt - 1, 0), 2.0),
            )
            replies.append(reply.text)
            served |= {reply.model} if reply.model else set()
            if prompt.read(reply.text) is not None:
                break
        return replies, served
