"""Small files of the kernel: read as they are, or None where they are missing or not for us.

Every reader here takes `root`, the root of the file system: another one where a container mounts its host
elsewhere, and in tests.
"""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The content without the zero byte and line break at its end; None where it cannot be read or is empty.

    A sensor that is switched off answers with an error of its own (ENODATA, EAGAIN): the same as no file.
    """
    try:
        return path.read_bytes().rstrip(b"\0\n").decode("utf-8", errors="replace").strip() or None
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The number that a file begins with (`32760` or `32760 mA`)."""
    text = read_text(path)
    if text is None:
        return None
    try:
        return int(text.split()[0])
    except ValueError:
        return None


def numbered(folder: Path, pattern: str) -> list[Path]:
    """The entries of a folder that match, in the order of their numbers: hwmon2 before hwmon10."""
    digits = str.maketrans("", "", "0123456789")

    def order(path: Path) -> tuple[str, int]:
        number = "".join(letter for letter in path.name if letter.isdigit())
        return path.name.translate(digits), int(number or 0)

    return sorted(folder.glob(pattern), key=order)
