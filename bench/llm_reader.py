"""A judge's endpoint that reads answers out of replies, as MathVista's and BLINK's own code has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.chat import CallFailed
from bench.extraction import OWN_PROMPTS, Extraction, ExtractionPrompt, Request
from bench.kept_replies import KeptReplies
from bench.llm_judge import WORKERS
from genrecal.core.errors import BenchError

MAX_TOKENS = 1024  # MathVista's setting; BLINK names none


class LLMReader:
    """Asks an endpoint, each request at most once.

    Args:
        kept: the endpoint and its replies.
        prompts: at most one a benchmark; what is missing is in our own words.
    """

    def __init__(self, kept: KeptReplies, prompts: Sequence[ExtractionPrompt] = ()) -> None:
        self.kept = kept
        self.prompts = OWN_PROMPTS | {prompt.benchmark: prompt for prompt in prompts}

    def prompt(self, benchmark: str) -> ExtractionPrompt:
        return self.prompts[benchmark]

    def facts(self, benchmark: str) -> Mapping[str, Any]:
        prompt = self.prompts[benchmark]
        return {
            "judge": self.kept.endpoint.model,
            "base_url": self.kept.endpoint.base_url,
            "asked": "what the reply answers",
            "prompt": prompt.name,
            "prompt_sha256": prompt.sha256,
            "max_tokens": MAX_TOKENS,
        }

    def read(self, benchmark: str, requests: Sequence[Request]) -> list[Extraction]:
        """An extraction for each request, in their order; requests that are alike are asked once.

        Raises:
            BenchError: the endpoint refuses every request, or none of them found a connection.
        """
        distinct = {request.text: request for request in requests}
        with ThreadPoolExecutor(WORKERS) as pool:
            read = pool.map(lambda request: self._read(benchmark, request), distinct.values())
            by_text = dict(zip(distinct, read, strict=True))
        found = [by_text[request.text] for request in requests]
        if found and all(one.unreachable for one in found):
            raise BenchError(
                f"the judge answers nothing ({found[0].reason})",
                where=self.kept.endpoint.base_url,
                fix="Check the judge's address; the answers are kept, so the same command only judges again",
            )
        return found

    def _read(self, benchmark: str, request: Request) -> Extraction:
        try:
            replies = self.kept.ask(
                lambda _: [{"role": "user", "content": request.text}],
                usable=request.usable,
                max_tokens=MAX_TOKENS,
                about={"prompt": self.prompts[benchmark].name, "benchmark": benchmark},
            )
        except CallFailed as error:
            return Extraction(text=None, reason=error.what, unreachable=error.unreachable)
        if not request.usable(replies[-1]):
            return Extraction(text=None, reason=f"no answer in {replies[-1]!r}")
        return Extraction(text=replies[-1].strip(), reason=replies[-1])
