"""What the endpoint counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edge.generate import Answer
from edge.model import EdgeModel

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "genrecal_requests", "Requests by the status of their answer.", ["status"], registry=registry
        )
        self._tokens = Counter(
            "genrecal_tokens",
            "Tokens of prompts (reused ones are among them) and of answers.",
            ["kind"],
            registry=registry,
        )
        self._first = Histogram(
            "genrecal_first_token_seconds",
            "From the start of a request's turn to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "genrecal_answer_seconds",
            "From the start of a request's turn to its last token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._waiting = Gauge(
            "genrecal_requests_waiting", "Requests that wait or are being answered.", registry=registry
        )
        self._images = Counter(
            "genrecal_images", "Images by whether their features were kept.", ["features"], registry=registry
        )
        self._kept = Gauge(
            "genrecal_kept_bytes", "Memory of what is kept for later questions.", ["what"], registry=registry
        )
        self._seen = [0, 0]

    def watch(self, waiting: Callable[[], int]) -> None:
        """Ask `waiting` for the length of the queue whenever the metrics are read."""
        self._waiting.set_function(waiting)

    def answered(self, answer: Answer, model: EdgeModel) -> None:
        """Count an answer; called by the thread that owns the model."""
        self._tokens.labels("prompt").inc(answer.prompt_tokens)
        self._tokens.labels("reused").inc(answer.reused_tokens)
        self._tokens.labels("answer").inc(len(answer.token_ids))
        self._first.observe(answer.first_token_s)
        self._whole.observe(answer.first_token_s + answer.decode_s)
        now = [model.pictures.hits, model.pictures.misses]
        for label, new, old in zip(("kept", "computed"), now, self._seen, strict=True):
            self._images.labels(label).inc(new - old)
        self._seen = now
        self._kept.labels("features").set(model.pictures.held_bytes)
        self._kept.labels("keys_and_values").set(model.slots.held_bytes)

    def text(self) -> bytes:
        return generate_latest(self._registry)
