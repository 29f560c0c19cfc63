"""The command line as a user meets it: help with examples, one clear line for bad input, torch-free `ask`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from genrecal.export.build import export_run
from tests.tiny import TinyData, TinyPair

runner = CliRunner()

OPTIONS = {
    "cache": {"--set"},
    "convert": set(),
    "distill": {"--set", "--launch", "--submit", "--dry-run"},
    "plan": {
        "--set",
        "--plan",
        "--gpu",
        "--ranks",
        "--samples",
        "--question-tokens",
        "--answer-tokens",
        "--tiles",
        "--utilisation",
        "--models",
        "--json",
    },
    "export": {
        "--int8",
        "--int4",
        "--fp32",
        "--fp16",
        "--target",
        "--output",
        "--for",
        "--adapter",
        "--calibration",
        "--min-agreement",
        "--keep-fp16",
        "--push-to-hub",
        "--push-student",
        "--public",
    },
    "lint": {"--target"},
    "pairs": {"--teacher", "--student"},
    "ask": {
        "--max-new-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--stop",
        "--threads",
        "--device",
        "--memory",
        "--json",
        "--manifest-sha256",
        "--trusted-key",
    },
    "answer": {"--threads", "--device", "--memory", "--watch", "--manifest-sha256", "--trusted-key"},
    "doctor": {"--for"},
    "sign": {"--key"},
    "install": {"--manifest-sha256", "--trusted-key"},
    "rollback": {"--trusted-key"},
    "wheelhouse": {"--python", "--machine", "--glibc", "--extra", "--add"},
    "serve": {
        "--host",
        "--port",
        "--threads",
        "--device",
        "--memory",
        "--queue",
        "--max-new-tokens",
        "--max-body",
        "--max-pixels",
        "--timeout",
        "--manifest-sha256",
        "--trusted-key",
    },
    "bench": {
        "--mmb",
        "--mmmu",
        "--mm-vet",
        "--test",
        "--compat",
        "--training",
        "--overlap",
        "--device",
        "--output",
        "--greedy",
        "--batch-size",
        "--adapter",
        "--processes",
        "--model",
        "--host",
        "--ssh",
        "--remote-command",
        "--judge-url",
        "--judge-model",
        "--judge-prompt",
        "--judge-runs",
        "--judge-cache",
        "--judge-replay",
        "--judge-control",
        "--limit",
        "--timed",
        "--baseline",
        "--max-drop",
        "--manifest-sha256",
        "--trusted-key",
    },
    "report": {"--output", "--json"},
    "score": {
        "--mmb",
        "--mmmu",
        "--mm-vet",
        "--test",
        "--compat",
        "--official-random",
        "--output",
        "--judge-url",
        "--judge-model",
        "--judge-prompt",
        "--judge-runs",
        "--judge-cache",
        "--judge-replay",
        "--judge-control",
    },
    "leaderboard": {"--json", "--output"},
    "demo": {"--seeds", "--output", "--config", "--set"},
    "figures": {"--output", "--format", "--baseline"},
    "data get": {"--output", "--revision"},
    "data check": {"--test", "--images", "--json", "--bad", "--exclude", "--workers"},
}


@pytest.fixture(scope="module")
def build(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "build"
    return export_run(tiny_pair.student, folder, precision="int8", min_agreement=0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.effect_noise((80, 60), 90).convert("RGB").save(path)
    return path


def line_of(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and stderr of a command that fails."""
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return result.exit_code, lines[0]


def test_every_command_has_help_with_an_example() -> None:
    for command in OPTIONS:
        result = runner.invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert f"genrecal {command}" in result.output.split("Example")[1]


def test_the_version_is_the_package_s() -> None:
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"genrecal {version('genrecal')}\n")


def test_no_option_comes_or_goes_unnoticed() -> None:
    import typer

    group = typer.main.get_command(cli.app)
    commands = dict(group.commands)  # type: ignore[attr-defined]
    data = commands.pop("data")
    commands |= {f"data {name}": command for name, command in data.commands.items()}
    found = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in commands.items()
    }
    assert {name: options - {"--help"} for name, options in found.items()} == OPTIONS


def test_a_build_answers_where_torch_and_transformers_cannot_be_imported(build: Path, picture: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'deepspeed', 'peft', 'optimum', 'onnx', 'scipy', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "from cli import app\n"
        "app()\n"
    )
    command = [sys.executable, "-c", program, "ask", str(build), str(picture), "What is in the picture?"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "5"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_ask_with_a_missing_image(build: Path) -> None:
    code, line = line_of("ask", build, "nowhere.png", "What?")
    assert code == 3
    assert "nowhere.png: no such image" in line


def test_ask_with_a_truncated_image(build: Path, picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:500])
    code, line = line_of("ask", build, picture, "What?")
    assert code == 3
    assert "cannot be decoded" in line


def test_ask_with_a_file_that_is_no_image(build: Path, picture: Path) -> None:
    picture.write_text("no image")
    assert "is not an image" in line_of("ask", build, picture, "What?")[1]


def test_ask_with_an_empty_question_or_too_many_threads(build: Path, picture: Path) -> None:
    assert "the question: is empty" in line_of("ask", build, picture, " ")[1]
    assert "cores of this machine" in line_of("ask", build, picture, "What?", "--threads", "100000")[1]


def test_ask_with_a_folder_that_is_no_build(tiny_pair: TinyPair, picture: Path) -> None:
    code, line = line_of("ask", tiny_pair.student, picture, "What?")
    assert code == 5
    assert "is no build folder" in line


def test_ask_with_a_flipped_byte_in_the_build(build: Path, picture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "build"
    shutil.copytree(build, copy)
    graph = copy / "onnx" / "decoder_model_merged_int8.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    code, line = line_of("ask", copy, picture, "What?")
    assert code == 5
    assert "decoder_model_merged_int8.onnx" in line


def test_device_jetson_on_another_machine_says_how_to_run_it_there(build: Path, picture: Path) -> None:
    if Path("/etc/nv_tegra_release").exists():
        pytest.skip("this machine is a Jetson")
    code, line = line_of("ask", build, picture, "What?", "--device", "jetson")
    assert code == 6
    assert "Jetson" in line and "genrecal" in line


def test_distill_with_an_unknown_key(tiny_pair: TinyPair, tiny_data: TinyData, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"student: {tiny_pair.student}\noutput: {tmp_path / 'run'}\nlora: {{rnak: 4}}\n")
    code, line = line_of("distill", config)
    assert code == 2
    assert "unknown key 'lora.rnak'" in line and "Did you mean 'rank'?" in line
    assert not (tmp_path / "run").exists()


def test_distill_with_a_folder_that_is_no_model(tiny_data: TinyData, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: finetune\nstudent: {tmp_path}\noutput: {tmp_path / 'run'}\n"
        f"data: {{sources: [{{path: {tiny_data.path}}}]}}\n"
    )
    code, line = line_of("distill", config)
    assert code == 4
    assert "has no config.json" in line


def test_distill_with_a_missing_training_image(tiny_pair: TinyPair, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    data.write_text(
        json.dumps([{"id": "7", "image": "gone.png", "domain": "knowledge", "conversations": turns}])
    )
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: finetune\nstudent: {tiny_pair.student}\noutput: {tmp_path / 'run'}\n"
        f"data: {{sources: [{{path: {data}}}]}}\n"
    )
    code, line = line_of("distill", config)
    assert code == 3
    assert "gone.png: no such image" in line and "'7'" in line


def test_export_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert line_of("export", tmp_path)[0] == 4
    assert "exclude each other" in line_of("export", tmp_path, "--int8", "--fp32")[1]


def test_bench_of_a_wrong_folder_and_without_a_set(build: Path, tmp_path: Path) -> None:
    assert "no test set is named" in line_of("bench", build)[1]
    table = tmp_path / "empty.tsv"
    table.write_text("")
    assert "empty.tsv" in line_of("bench", build, "--mmb", table)[1]
    line_of("bench", tmp_path, "--mmb", table)
    assert "gone: no such folder or file" in line_of("score", tmp_path / "gone")[1]


def test_data_check_finds_a_shared_image(tiny_data: TinyData) -> None:
    code, line = line_of("data", "check", tiny_data.path, "--test", tiny_data.path)
    assert code == 3
    assert "is the training image" in line


def test_pairs_says_which_methods_serve_and_why_others_do_not(tiny_pair: TinyPair) -> None:
    folders = ["--teacher", str(tiny_pair.teacher), "--student", str(tiny_pair.student)]
    result = runner.invoke(cli.app, ["pairs", *folders])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())  # in lines as wide as the terminal
    assert "not minillm, minillm†, distillm, distillm†, llava-kd, llava-kd†: the tokenizers differ" in said
    code, line = line_of("pairs", "--teacher", "nowhere", "--student", tiny_pair.student)
    assert code == 4 and "nowhere: no such model folder" in line
