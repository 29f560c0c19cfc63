"""What a build's own files make the libraries raise becomes one kind of error.

A build may be whole and signed and still be nonsense: a graph whose shapes do not fit, a setting out of any
range. ONNX Runtime, numpy and pillow each have their own exceptions for it; a caller deals with BuildError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrecal.core.errors import BuildError, DeviceError, GenrecalError


@contextmanager
def build_errors(folder: Path) -> Iterator[None]:
    """While a build in `folder` works: its faults as BuildError, with the library's exception as the cause.

    Raises:
        BuildError: whatever it was.
        DeviceError: the memory does not suffice.
    """
    try:
        yield
    except GenrecalError:
        raise
    except MemoryError as error:
        raise DeviceError(
            "the memory does not suffice", where=folder, fix="Ask with less, or end other programs"
        ) from error
    except BaseException as error:
        # A Rust library's panic (tokenizers) is no Exception; Ctrl-C and the like are not the build's.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = " ".join(str(error).split())[:300]
        raise BuildError(
            f"fails at work ({type(error).__name__}: {line})",
            where=folder,
            fix="Its files do not fit together: export it again",
        ) from error
