"""Multiple choice as VLMEvalKit marks it where no judge is asked."""

from __future__ import annotations

from bench.rules.option_letters import infer_option
from bench.scoring import Mark
from bench.task import Row


def kit_letters(row: Row, reply: str) -> Mark:
    """The kit's letters, without a judge."""
    letter = infer_option(reply, row.options)
    return Mark(hit=float(letter == row.gold), read=letter or "", unparsed=letter is None)
