"""`genrecal convert` as a user meets it."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

import cli
from genrecal.core.manifest import verify_manifest
from tests.convert.reference import DATA

SOURCE = DATA / "internvl2_llama3" / "source"
runner = CliRunner()


def test_a_conversion_and_its_second_call(tmp_path: Path) -> None:
    target = tmp_path / "models" / "new"
    done = runner.invoke(cli.app, ["convert", str(SOURCE), str(target)])
    assert done.exit_code == 0, done.output
    assert "61 weights" in done.stdout and "100%" in done.stdout
    assert "left out: vision_config.drop_path_rate (for training the vision encoder" in done.stdout
    assert verify_manifest(target, kind="model")["converted_from"]["layout"] == "InternVL 2 and 2.5"
    again = runner.invoke(cli.app, ["convert", str(SOURCE), str(target)])
    assert again.exit_code == 2
    assert again.stderr == f"error: {target}: is there already. Name another folder, or delete it\n"


def test_a_native_folder_is_no_error(tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert runner.invoke(cli.app, ["convert", str(SOURCE), str(first)]).exit_code == 0
    done = runner.invoke(cli.app, ["convert", str(first), str(tmp_path / "second")])
    assert done.exit_code == 0 and "nothing to convert" in done.stdout
    assert not (tmp_path / "second").exists()


def test_an_unknown_layout_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3_v"}')
    done = runner.invoke(cli.app, ["convert", str(tmp_path), str(tmp_path / "out")])
    assert done.exit_code == 4
    assert len(done.stderr.strip().splitlines()) == 1 and "no known layout" in done.stderr
