"""One hierarchy of errors; each says what happened, where, and what to do, and has a fixed exit code."""

from __future__ import annotations

from pathlib import Path

# Line breaks, what moves a terminal's cursor or turns text around, and halves of surrogate pairs: an error
# may quote a stranger's file, and is one line wherever it is printed.
_CONTROL = {
    **dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F)), " "),
    **dict.fromkeys((*range(0x2066, 0x206A), *range(0xD800, 0xE000)), " "),
}
_LONGEST = 1000


def _printable(line: str) -> str:
    line = line.translate(_CONTROL)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 + 3 :]}"


class GenrecalError(Exception):
    """What the command line turns into one line on stderr and `exit_code`.

    Args:
        what: what went wrong, without a final full stop.
        where: the file, sample or field that it went wrong in.
        fix: what the user can do about it.
    """

    exit_code = 1
    reported = False  # whether the process that failed has told the user already

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        line = f"{where}: {what}" if where is not None else what
        super().__init__(_printable(f"{line}. {fix}" if fix else line))


class ConfigError(GenrecalError):
    """A config file, a `--set` or a flag that cannot be used."""

    exit_code = 2


class DataError(GenrecalError):
    """A training sample, a benchmark file or an image that cannot be used."""

    exit_code = 3


class ModelError(GenrecalError):
    """A model folder or checkpoint that is missing, altered or of an unknown family."""

    exit_code = 4


class BuildError(GenrecalError):
    """An edge build that is missing, incomplete or altered, or that fails its parity gate."""

    exit_code = 5


class DeviceError(GenrecalError):
    """A device that this machine does not have."""

    exit_code = 6


class BenchError(GenrecalError):
    """A benchmark run that cannot give an honest score."""

    exit_code = 7


class TrainError(GenrecalError):
    """A training run that cannot go on."""

    exit_code = 8


class Requeue(GenrecalError):
    """A run that was asked to end by a signal and has left all that it needs to go on (EX_TEMPFAIL)."""

    exit_code = 75
