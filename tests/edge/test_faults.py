"""Faults of a build's files are one kind of error; a user's interrupt is none of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge.faults import build_errors
from genrecal.core.errors import BuildError, DataError, DeviceError


class PanicException(BaseException):
    """As tokenizers raises it: below BaseException alone."""


def raised(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught, build_errors(Path("build")):
        raise error
    return caught.value


def test_what_a_library_raises_is_kept_as_the_cause() -> None:
    shapes = ValueError("shape mismatch:\n(16,)")
    found = raised(shapes)
    assert isinstance(found, BuildError) and found.__cause__ is shapes
    assert "build: fails at work (ValueError: shape mismatch: (16,))" in str(found)
    assert isinstance(raised(PanicException("index out of bounds")), BuildError)
    assert isinstance(raised(MemoryError()), DeviceError)


@pytest.mark.parametrize(
    "error", [DataError("too long"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()]
)
def test_what_is_passed_on(error: BaseException) -> None:
    assert raised(error) is error


def test_onnx_runtimes_own_errors(build_folder: Path) -> None:
    session = onnxruntime.InferenceSession(str(build_folder / "onnx/embed_tokens.onnx"))
    with pytest.raises(BuildError, match=r"fails at work \(Invalid"), build_errors(build_folder):
        session.run(None, {"input_ids": np.array([[10**6]], np.int64)})
