"""An LLM as the judge, behind any OpenAI-compatible endpoint; its replies are kept on disk and replayed.

    prompt (instruction, examples, one row) -> chat completion -> the first word, a number from 0 to 1

The examples below are in our own words and keep MM-Vet's grading contract. For figures that are compared with
published ones, pass the official prompt text (`--judge-prompt FILE`) and the official judge model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from bench.journal import append_lines, read_lines
from bench.judge import AND, OR, Grade, JudgeItem
from genrecal.core.errors import BenchError
from genrecal.core.files import sha256_bytes

PROMPT = """\
You grade answers of vision-language models. Given a question, its ground truth and a prediction, say how \
correct the prediction is. Where the ground truth joins elements with <AND>, the prediction is fully correct \
only if it has all of them; where it joins elements with <OR>, any one of them is enough. The grade is one \
of 0.0 (wholly wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0 (wholly right). Complete the \
last cell of the table with the grade and write nothing else.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which numbers solve the equation? | 2 <AND> -7 | The solution is 4 | 0.0
Which numbers solve the equation? | 2 <AND> -7 | x = 2 | 0.5
Which numbers solve the equation? | 2 <AND> -7 | x is -7, or perhaps 7 | 0.5
Which numbers solve the equation? | 2 <AND> -7 | x = -7 or x = 2 | 1.0
What colour is the car? | gray <OR> silver | It looks silver | 1.0
Why is the sign funny? | The sign asks people not to read signs, so whoever obeys has already broken it. | \
The sign is about reading, and it is funny because it contradicts itself. | 0.6
Why is the sign funny? | The sign asks people not to read signs, so whoever obeys has already broken it. | \
One can only learn from the sign that signs must not be read by reading it, so obeying is impossible. | 1.0
"""
ASK_AGAIN = "\nPredict the correctness of the answer (digit): "
ATTEMPTS = 5  # replies that hold no grade, before the item stays ungraded
MORE_HEAT = 0.5  # added to the temperature for each further attempt, as the official evaluator does
CALL_ATTEMPTS = 6  # network and rate-limit failures of one call
WORKERS = 4
_GRADE = re.compile(r"0|1|0?\.\d+|0\.\d*|1\.0*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the judge model is; the key stays in memory."""

    base_url: str
    model: str
    api_key: str
    max_tokens: int = 3  # the official setting; models that think first need more
    timeout_s: float = 60.0


def endpoint_from(model: str, base_url: str | None = None, api_key: str | None = None) -> Endpoint | None:
    """The judge's endpoint from options, else from the environment.

    Args:
        model: the judge's model name.
        base_url: its address; None: GENRECAL_JUDGE_BASE_URL.
        api_key: None: GENRECAL_JUDGE_API_KEY, else OPENAI_API_KEY.

    Returns: None where no address is given, so that the offline judge takes over.

    Raises:
        BenchError: there is an address but no key.
    """
    base_url = base_url or os.environ.get("GENRECAL_JUDGE_BASE_URL")
    if not base_url:
        return None
    api_key = api_key or os.environ.get("GENRECAL_JUDGE_API_KEY") or os.environ.get("OPENAI_API_KEY")
    if not api_key:
        raise BenchError(
            "the judge has no API key",
            where=base_url,
            fix="Set GENRECAL_JUDGE_API_KEY (any word will do for a server that asks for none)",
        )
    return Endpoint(base_url=base_url, model=model, api_key=api_key)


UNREACHABLE = "no connection"


class LLMJudge:
    """Grades through an endpoint, at most once for each item and run: replies are replayed from `cache`."""

    def __init__(
        self, endpoint: Endpoint, cache: Path, *, prompt: str = PROMPT, replay_only: bool = False
    ) -> None:
        """Args:
        endpoint: the judge model.
        cache: a JSONL file, made where it is missing.
        prompt: instruction and examples; the row to grade follows on a line of its own.
        replay_only: make no call; what the cache lacks stays ungraded.
        """
        self.endpoint, self.cache, self.prompt, self.replay_only = endpoint, cache, prompt, replay_only
        self._replies: dict[str, list[str]] = {}
        self._lock = Lock()
        for line in read_lines(cache):
            self._replies[line["key"]] = line["replies"]

    @property
    def title(self) -> str:
        return f"MM-Vet (judge {self.endpoint.model})"

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "judge": self.endpoint.model,
            "base_url": self.endpoint.base_url,
            "prompt_sha256": sha256_bytes(self.prompt.encode()),
            "max_tokens": self.endpoint.max_tokens,
        }

    def grade(self, items: Sequence[JudgeItem], *, run: int) -> list[Grade]:
        with ThreadPoolExecutor(WORKERS) as pool:
            grades = list(pool.map(lambda item: self._grade(item, run), items))
        if grades and all(grade.reason.startswith(UNREACHABLE) for grade in grades):
            raise BenchError(
                f"the judge answers nothing ({grades[0].reason})",
                where=self.endpoint.base_url,
                fix="Check the judge's address; the answers are kept, so the same command only judges again",
            )
        return grades

    def _grade(self, item: JudgeItem, run: int) -> Grade:
        reference = item.reference.replace(AND, f" {AND} ").replace(OR, f" {OR} ")
        prompt = f"{self.prompt}\n{item.question} | {reference} | {item.reply} | "
        asked = json.dumps([self.endpoint.model, self.endpoint.max_tokens, run, prompt])
        key = sha256_bytes(asked.encode())
        replies = self._replies.get(key)
        if replies is None:
            if self.replay_only:
                return Grade(score=None, reason="not in the cache")
            import openai

            refused = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
            try:
                replies = self._ask(prompt)
            except refused as error:
                # Every other item would meet the same wall.
                raise BenchError(
                    f"the judge refuses ({' '.join(str(error).split())[:200]})",
                    where=self.endpoint.base_url,
                    fix="Check the judge's address, model and key",
                ) from None
            except openai.APIConnectionError as error:
                return Grade(score=None, reason=f"{UNREACHABLE}: {' '.join(str(error).split())[:200]}")
            except openai.OpenAIError as error:
                # Not cached: the next run of the same command asks again.
                return Grade(score=None, reason=f"the call failed: {' '.join(str(error).split())[:200]}")
            with self._lock:
                self._replies[key] = replies
                line = {"key": key, "run": run, "question": item.question, "replies": replies}
                append_lines(self.cache, [line])
        score = parse_grade(replies[-1])
        return Grade(score=score, reason=replies[-1] if score is not None else f"no grade in {replies[-1]!r}")

    def _ask(self, prompt: str) -> list[str]:
        """The replies up to the first with a grade, at most ATTEMPTS."""
        replies: list[str] = []
        for attempt in range(ATTEMPTS):
            text = prompt if attempt == 0 else prompt + ASK_AGAIN
            replies.append(self._call(text, temperature=min(MORE_HEAT * max(attempt - 1, 0), 2.0)))
            if parse_grade(replies[-1]) is not None:
                break
        return replies

    def _call(self, prompt: str, *, temperature: float) -> str:
        # Imported here: the client takes about a second to import, and only this judge needs it.
        import openai
        import tenacity

        client = openai.OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            timeout=self.endpoint.timeout_s,
            max_retries=0,  # the retries below are the only ones
        )
        passing = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError)
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(passing),
            stop=tenacity.stop_after_attempt(CALL_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
            reraise=True,
        ):
            with attempt:
                completion = client.chat.completions.create(
                    model=self.endpoint.model,
                    max_tokens=self.endpoint.max_tokens,
                    temperature=temperature,
                    messages=[{"role": "user", "content": prompt}],
                )
        return completion.choices[0].message.content or ""


def read_prompt(path: Path) -> str:
    """The instruction and examples in a file.

    Raises:
        BenchError: no such file, or an empty one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot be read as the judge's prompt ({error})", where=path) from None
    if not text.strip():
        raise BenchError("holds no prompt", where=path)
    return text


def parse_grade(reply: str) -> float | None:
    """The number from 0 to 1 that a reply begins with, None where its first word is anything else."""
    words = reply.split()
    if not words or not _GRADE.fullmatch(words[0]):
        return None
    return float(words[0])
