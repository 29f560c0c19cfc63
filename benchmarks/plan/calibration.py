"""How fast a process computes, moves and calls: what a prediction of seconds is made with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Model

from genrecal.plan.recorder import Recorder


class Calibration:
    """How fast this process computes, moves and calls, measured between the micro-steps."""

    def __init__(self, precision: str, *, tokens: int, width: int) -> None:
        """Make what is measured.

        Args:
            precision: of the engine.
            tokens: rows of the features.
            width: of the features; an MLP is three times as wide.
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._left = torch.randn(tokens, width).to(dtype)
        self._right = torch.randn(width, 3 * width).to(dtype)
        self._features = torch.randn(tokens, 3 * width).to(dtype)
        self._nothing = torch.randn(1, 1).to(dtype)
        self._large = torch.randn(16 * 2**20)
        shape = Qwen2Config(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        self._model = Qwen2Model(shape).to(dtype)
        self._ids = torch.zeros(1, 4, dtype=torch.int64)
        with Recorder("calls") as recorder:
            self._call()
        self._calls = len(recorder.operations)
        with Recorder("moves") as recorder:
            self._between_products(self._features)
        self._moved = sum(one.moved for one in recorder.operations)
        self._product = 2 * tokens * width * 3 * width
        self.readings: dict[str, list[float]] = {}

    def measure(self) -> None:
        """One more reading of each; products and copies without what the calls alone take."""
        nothing = self._nothing
        product = _seconds(lambda: self._left @ self._right) - _seconds(lambda: nothing @ nothing)
        moves = _seconds(lambda: self._between_products(self._features))
        moves -= _seconds(lambda: self._between_products(nothing))
        for name, value in {
            "flops_per_s": self._product / product,
            "bytes_per_s": self._moved / moves,
            "fresh_bytes_per_s": 4 * self._large.numel() / _seconds(lambda: torch.ones_like(self._large)),
            "seconds_per_operation": _seconds(self._call) / self._calls,
        }.items():
            self.readings.setdefault(name, []).append(value)

    def _call(self) -> None:
        """A model of almost nothing: what Python and torch take for each call."""
        self._model(self._ids, use_cache=False).last_hidden_state.sum().backward()

    def _between_products(self, x: torch.Tensor) -> torch.Tensor:
        """What a decoder layer does between its products: a norm, a gate, a sum."""
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x + torch.nn.functional.silu(normed) * x


def _seconds(work: Callable[[], Any], least: float = 0.02) -> float:
    """Processor seconds of one call, of as many as take `least` seconds, and at least five."""
    started, calls = time.process_time(), 0
    while calls < 5 or time.process_time() - started < least:
        work()
        calls += 1
    return (time.process_time() - started) / calls
