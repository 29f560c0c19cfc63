"""Rows that cannot be used: counted against the user's limit, written down, and named in one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError
from genrecal.data.source import Reading

NAMED = 20  # bad rows that an error tells; `genrecal data check` writes down all


class BadRows:
    """The bad rows of all sources of a mixture."""

    def __init__(self, *, skips: bool = False, limit: int = 0) -> None:
        """Start with none.

        Args:
            skips: bad rows are left out; without it, they stop the run once all sources are read.
            limit: so many may be left out.
        """
        self.skips, self.limit = skips, limit
        self.count = 0
        self._named: list[dict[str, Any]] = []

    def add(self, facts: dict[str, Any]) -> None:
        """Count one more, as Reading.facts gives it.

        Raises:
            DataError: more are skipped than the limit allows.
        """
        self.count += 1
        if len(self._named) < NAMED:
            self._named.append(facts)
        if self.skips and self.count > self.limit:
            self.fail()

    def require_none(self) -> None:
        """After the last source.

        Raises:
            DataError: there are bad rows and none may be skipped; the first of them are named.
        """
        if self.count and not self.skips:
            self.fail()

    def fail(self) -> None:
        first = self._named[0]
        if self.count == 1:
            raise DataError(first["what"], where=first["where"], fix=first["fix"])
        lines = [f"{facts['where']}: {facts['what']}" for facts in self._named]
        if self.count > len(lines):
            lines.append(f"and {self.count - len(lines):,} more")
        over = f", max_bad is {self.limit:,}" if self.skips else ""
        raise DataError(
            f"{self.count:,} rows cannot be used{over}: {'; '.join(lines)}",
            where="data",
            fix="`genrecal data check` writes down every one",
        )


class Journal:
    """The bad rows of one source on disk, a JSON line each."""

    def __init__(self, path: Path, source: str, bad: BadRows) -> None:
        self.source, self.bad, self.count = source, bad, 0
        self._stream = path.open("w", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, reading: Reading) -> None:
        facts = reading.facts(self.source)
        self._stream.write(json.dumps(facts) + "\n")
        self.count += 1
        self.bad.add(facts)


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """What a Journal wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
