"""Boards by their files: which one, which mode, which clocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.jetson.board import PowerMode, module_of, parse_query, read_board, read_clocks
from tests.edge.jetson.trees import agx_orin, jetpack4_nano, orin_nano, put, thor


def test_an_orin_nano(tmp_path: Path) -> None:
    board = read_board(orin_nano(tmp_path))
    assert board is not None and board.module is not None
    assert (board.module.name, board.module.compute_capability, board.linux) == ("Orin Nano", "87", "36.4.3")
    assert board.power_mode == PowerMode(id=2, name="MAXN_SUPER")
    assert [mode.name for mode in board.power_modes] == ["15W", "25W", "MAXN_SUPER"]
    assert {name: clock.now_mhz for name, clock in board.clocks.items()} == {
        "cpu": 1728.0,
        "gpu": 1020.0,
        "emc": 3199.0,
    }
    assert board.clocks["gpu"].fixed and not board.clocks["cpu"].fixed


def test_an_agx_orin_says_its_mode_by_nvpmodel_alone(tmp_path: Path) -> None:
    root = agx_orin(tmp_path)
    board = read_board(root, query=lambda: "NVPM VERB: Config file\nNV Power Mode: MODE_30W\n2\n")
    assert board is not None and board.module is not None and board.module.name == "AGX Orin"
    assert board.linux == "35.4.1" and board.power_mode == PowerMode(id=2, name="MODE_30W")
    assert board.clocks["gpu"].now_mhz == 306.0 and "emc" not in board.clocks
    unknown = read_board(root)
    assert unknown is not None and unknown.power_mode is None


def test_a_thor(tmp_path: Path) -> None:
    board = read_board(thor(tmp_path))
    assert board is not None and board.module is not None
    assert (board.module.name, board.module.compute_capability, board.linux) == ("Thor", "110", "38.2.0")
    assert board.clocks["gpu"].now_mhz == 1575.0 and board.clocks["emc"].now_mhz == 4266.0


def test_an_older_board_is_one_without_a_known_module(tmp_path: Path) -> None:
    board = read_board(jetpack4_nano(tmp_path))
    assert board is not None and board.module is None and board.linux == "32.7.1"


def test_other_machines_are_none(tmp_path: Path) -> None:
    assert read_board(tmp_path) is None
    put(tmp_path, {"proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0"})
    assert read_board(tmp_path) is None and read_clocks(tmp_path) == {}


@pytest.mark.parametrize(
    ("model", "compatible", "name"),
    [
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "", "Orin NX"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000", "AGX Orin"),
        ("A maker's own carrier", "maker,box nvidia,p3767-0003", "Orin Nano"),
        ("A maker's own carrier", "maker,box nvidia,p3767-0001", "Orin NX"),
        ("A maker's own carrier", "nvidia,p3834-0008", "Thor"),
    ],
)
def test_modules(model: str, compatible: str, name: str) -> None:
    module = module_of(model, compatible)
    assert module is not None and module.name == name


@pytest.mark.parametrize(
    "text", ["", "NVPM ERROR: no permission", "NV Power Mode: MAXN", "NV Power Mode: \n0"]
)
def test_what_nvpmodel_may_say_instead(text: str) -> None:
    assert parse_query(text) is None
