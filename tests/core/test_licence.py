"""The strictest licence of a model's parents, and what is said where one is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrecal.core.licence import licence_of, strictest


@pytest.mark.parametrize(
    ("parents", "name"),
    [
        ({"teacher": "mit", "student": "apache-2.0"}, "apache-2.0"),
        ({"teacher": "cc-by-nc-4.0", "student": "apache-2.0"}, "cc-by-nc-4.0"),
        ({"teacher": "llama3", "student": "cc-by-4.0"}, "llama3"),
        ({"teacher": None, "student": "mit"}, "unknown"),
        ({"teacher": "a-new-licence", "student": "mit"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_strictest(parents: dict[str, str | None], name: str) -> None:
    found = strictest(parents)
    assert found.name == name
    assert all(parent in found.warning for parent in parents)
    assert "Read the parents' own terms" in found.warning


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: Apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\n: : :\n---\n", None),
        ("# license: mit\n", None),
        ("text\n---\nlicense: mit\n---\n", None),
    ],
)
def test_a_model_folders_licence(tmp_path: Path, text: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert licence_of(tmp_path) == licence
    assert licence_of(tmp_path / "nowhere") is None
