"""Questions about one image are one cluster, by path or by content, over chains too."""

from __future__ import annotations

from pathlib import Path

from bench.image_clusters import image_clusters


def test_shared_images_join_questions_and_the_rest_is_alone():
    found = image_clusters(
        [
            ("a", [Path("1.png")]),
            ("b", [Path("2.png")]),
            ("c", [Path("1.png"), Path("3.png")]),
            ("alone", [Path("4.png")]),
            ("text", []),
            ("d", [Path("3.png")]),
        ]
    )
    assert found == {"a": "a", "c": "a", "d": "a"}


def test_bytes_count_by_content():
    assert image_clusters([("a", [b"x"]), ("b", [b"y"]), ("c", [b"x"])]) == {"a": "a", "c": "a"}


def test_a_question_may_join_two_clusters():
    found = image_clusters([("a", [b"x"]), ("b", [b"y"]), ("c", [b"y", b"x"])])
    assert len(set(found.values())) == 1 and set(found) == {"a", "b", "c"}
