"""The examples of docs/data.md are data, and its tables are the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from PIL import Image

from genrecal.core.images import MAX_ASPECT_RATIO, MAX_PIXELS, open_image
from genrecal.data.conversation import CONVERSATIONS
from genrecal.data.formats import Format
from genrecal.data.lengths import CHARACTERS_PER_TOKEN
from genrecal.data.mixture import SourceConfig, read_mixture
from genrecal.data.overlap import FEWEST_WORDS

TEXT = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return found


def test_the_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"images/{name}.png")
    lines = block("jsonl")
    (tmp_path / "lines.jsonl").write_text(lines)
    (tmp_path / "list.json").write_text(json.dumps([json.loads(line) for line in lines.splitlines()]))
    for name in ("lines.jsonl", "list.json"):
        source = SourceConfig(path=tmp_path / name, domain="knowledge", turns="each")
        mixture = read_mixture([source])
        both, red, first, second = mixture
        assert len(both.images) == 2 and both.answer == "The second."
        assert open_image(red.images[0]).getpixel((0, 0))[0] > 200
        assert (first.id, first.answer, second.id, second.answer) == ("c#1", "2", "c#2", "4")


def test_every_format_column_and_number_is_told() -> None:
    table = re.findall(r"^\| `(\w+)` \|", TEXT.split("## Test sets")[0], re.MULTILINE)
    assert set(table) >= set(get_args(Format))
    assert all(name in block("text") or name in TEXT for name in CONVERSATIONS)
    assert CHARACTERS_PER_TOKEN == 4 and "a quarter of the characters as tokens" in TEXT
    assert f"more than {MAX_PIXELS / 1e6:.0f} million pixels" in TEXT
    assert f"longer than {MAX_ASPECT_RATIO}:1" in TEXT
    assert FEWEST_WORDS == 6 and "six words or more" in TEXT
