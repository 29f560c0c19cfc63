"""The script for sbatch: what stands in it, and what it does among stand-ins for Slurm's own commands.

The stand-ins are small shell scripts that write down how they were called; srun's runs the command once for
each node and passes SIGUSR1 on, as the real one does. No real Slurm was tried.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from genrecal.core.config import load_config, parse_config
from genrecal.core.errors import ConfigError, GenrecalError, Requeue, TrainError
from genrecal.train.settings import RunConfig
from genrecal.train.slurm import for_sbatch, launch_folder, render, run_slurm
from tests.train.conftest import TIMEOUT_S, WriteConfig, environment
from tests.train.test_interruption import lines

SRUN = """#!/bin/bash
printf '%s\\n' "$*" >> "$CALLS/srun.log"
while [[ "$1" == -* ]]; do shift; done
for node in $(seq "$SLURM_NNODES"); do "$@" & tasks+=($!); done
trap 'kill -USR1 "${tasks[@]}"' USR1
code=0
for task in "${tasks[@]}"; do
  while true; do
    status=0; wait "$task" || status=$?
    if [ "$status" -le 128 ] || ! kill -0 "$task" 2> /dev/null; then break; fi
  done
  if [ "$status" -gt "$code" ]; then code=$status; fi
done
exit "$code"
"""
SCONTROL = """#!/bin/bash
printf '%s\\n' "$*" >> "$CALLS/scontrol.log"
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; fi
"""
SBATCH = """#!/bin/bash
printf '%s\\n' "$*" >> "$CALLS/sbatch.log"
if [ -n "${REFUSE:-}" ]; then echo "invalid partition" >&2; exit 1; fi
echo "4321;cluster"
"""
# A name that every careless script trips over.
AWKWARD = 'a run\'s $(touch gone) "100%" `x` #1'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job among the stand-ins."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "sbatch": SBATCH}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4321", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2"}
    return environment(CALLS=str(tools), PATH=f"{tools}:{os.environ['PATH']}", **job)


def calls(slurm: dict[str, str], name: str) -> list[str]:
    path = Path(slurm["CALLS"]) / f"{name}.log"
    return path.read_text().splitlines() if path.is_file() else []


def config_with(output: Path, **launch: object) -> RunConfig:
    content = {
        "method": "finetune",
        "student": "models/student",
        "output": str(output),
        "data": {"sources": [{"path": "data.json"}]},
        "launch": {"nodes": 2, "gpus_per_node": 8, **launch},
    }
    return parse_config(content, RunConfig, where="test")


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_options_are_the_configs(tmp_path: Path) -> None:
    script = render(
        config_with(
            tmp_path / "run",
            time="2-00:00:00",
            partition="gpu",
            account="vlm",
            qos="long",
            cpus_per_node=96,
            notice_minutes=20,
            sbatch=["--exclusive", "--comment=two words"],
            srun=["--container-image=genrecal 1.sqsh"],
            setup=["module load cuda && echo ok"],
        )
    )
    assert directives(script) == [
        "--job-name=run",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--time=2-00:00:00",
        "--partition=gpu",
        "--account=vlm",
        "--qos=long",
        f"--output={tmp_path}/run-launch/slurm-%j.log",
        "--open-mode=append",
        "--signal=USR1@1200",
        "--requeue",
        "--exclusive",
        "--comment=two\\ words",
    ]
    assert "\nmodule load cuda && echo ok\n" in script
    assert "srun --ntasks=2 --ntasks-per-node=1 --cpus-per-task=96 --kill-on-bad-exit=0 " in script
    assert shlex.quote("--container-image=genrecal 1.sqsh") in script
    assert "--partition" not in render(config_with(tmp_path / "run"))


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    script = render(config_with(tmp_path / "run", setup=["module load cuda"], cpus_per_node=96))
    done = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_character_reaches_sbatch_as_it_is() -> None:
    # sbatch reads a backslash as POSIX shells do outside of quotes, and so does shlex.
    assert shlex.split(for_sbatch(AWKWARD), comments=True) == [AWKWARD]


def test_an_awkward_path_is_only_a_path(
    tmp_path: Path, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / AWKWARD
    work.mkdir()
    monkeypatch.chdir(work)
    seen = work / "seen.txt"
    record = "import sys; open('seen.txt', 'a').write(repr(sys.argv[1:]) + chr(10))"
    config = config_with(Path("runs") / AWKWARD, command=[sys.executable, "-c", record])
    run_slurm(config, submit=False)
    folder = launch_folder(config.output).absolute()
    assert load_config(folder / "config.yaml", RunConfig) == config
    done = subprocess.run(
        ["bash", str(folder / "job.sh")], env=slurm, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    given = ["distill", str(folder / "config.yaml"), "--launch", "torchrun"]
    given += ["--set", "launch.rendezvous=node-a:24321", "--set", "launch.job=job-4321"]
    assert seen.read_text().splitlines() == [repr(given)] * 2  # one on each node
    assert not list(tmp_path.rglob("gone"))
    load_config(folder / "config.yaml", RunConfig, given[5::2])  # the overrides are what they look like


@pytest.mark.parametrize("codes", [(0, 0), (8, 0), (Requeue.exit_code, Requeue.exit_code), (137, 75)])
def test_only_a_saved_run_goes_back_into_the_queue(
    tmp_path: Path, slurm: dict[str, str], codes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # mkdir succeeds for one of the two tasks, however they race.
    task = f"if mkdir taken 2> /dev/null; then exit {codes[0]}; else exit {codes[1]}; fi"
    config = config_with(tmp_path / "run", command=["bash", "-c", task])
    done = subprocess.run(
        ["bash", "-c", render(config)], env=slurm, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == max(codes)
    requeued = "requeue 4321" in calls(slurm, "scontrol")
    assert requeued == (max(codes) == Requeue.exit_code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_script_reaches_the_tasks_as_sigusr1(
    tmp_path: Path, slurm: dict[str, str], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = "trap 'echo usr1 >> told; exit 75' USR1; echo >> up; for n in $(seq 600); do sleep 0.1; done"
    (tmp_path / "job.sh").write_text(render(config_with(tmp_path / "run", command=["bash", "-c", task])))
    job = subprocess.Popen(["bash", "job.sh"], env=slurm, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").is_file() or len((tmp_path / "up").read_text()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(number)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == Requeue.exit_code
    assert (tmp_path / "told").read_text() == "usr1\nusr1\n"
    assert "back into the queue" in said and calls(slurm, "scontrol")[-1] == "requeue 4321"


def test_a_script_that_fails_before_the_step_starts_none(
    tmp_path: Path, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = render(config_with(tmp_path / "run", setup=["false"]))
    assert subprocess.run(["bash", "-c", script], env=slurm, timeout=60, check=False).returncode == 1
    assert calls(slurm, "srun") == []


def test_it_is_submitted_only_when_asked(
    write_config: WriteConfig,
    slurm: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("PATH", "CALLS"):
        monkeypatch.setenv(name, slurm[name])
    path = write_config("submitted", method="sft", changes={"launch": {"gpus_per_node": 1}})
    config = load_config(path, RunConfig)
    folder = launch_folder(config.output)
    run_slurm(config, submit=False)
    shown = capsys.readouterr().out
    assert (folder / "job.sh").read_text() in shown and "not submitted" in shown
    assert calls(slurm, "sbatch") == []
    run_slurm(config, submit=True)
    assert capsys.readouterr().out.endswith("job 4321\n")
    assert calls(slurm, "sbatch") == [f"--parsable {folder / 'job.sh'}"]
    monkeypatch.setenv("REFUSE", "1")
    with pytest.raises(TrainError, match=r"sbatch refuses it \(invalid partition\)"):
        run_slurm(config, submit=True)
    assert not config.output.exists()


def test_what_cannot_be_submitted_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(config: RunConfig, *, submit: bool = False) -> GenrecalError:
        with pytest.raises(GenrecalError) as caught:
            run_slurm(config, submit=submit)
        return caught.value

    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no sbatch here" in str(error(config_with(tmp_path / "run"), submit=True))
    assert error(config_with(tmp_path / "run", gpus_per_node=None)).where == "launch.gpus_per_node"
    assert isinstance(error(config_with(tmp_path / "a\nb")), ConfigError)
    assert not list(tmp_path.iterdir())
    for wrong, why in (
        ("24:00:00", "in quotes"),
        ('"tomorrow"', "no time that Slurm knows"),
        ("90", "in quotes"),
    ):
        with pytest.raises(ConfigError, match=why):
            config_with(tmp_path / "run", time=yaml.safe_load(wrong))
    with pytest.raises(ConfigError, match="line break"):
        config_with(tmp_path / "run", partition="gpu\n#SBATCH --uid=0")


@pytest.mark.full
def test_a_job_saves_requeues_and_finishes(
    write_config: WriteConfig, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run through the script: an agent with two ranks, SIGUSR1 in the middle, the same job again."""
    path = write_config(
        "job", method="sft", changes={"launch": {"gpus_per_node": 2}, "stages": {"adapt": {"epochs": 6.0}}}
    )
    config = load_config(path, RunConfig)
    monkeypatch.chdir(path.parent)
    run_slurm(config, submit=False)
    script = ["bash", str(launch_folder(config.output) / "job.sh")]
    job = subprocess.Popen(script, env=slurm | {"SLURM_NNODES": "1"}, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + TIMEOUT_S
    while lines(config.output, "adapt") < 1:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=TIMEOUT_S)
    assert job.returncode == Requeue.exit_code, said
    assert calls(slurm, "scontrol")[-1] == "requeue 4321"
    saved = list((config.output / "checkpoints").rglob("manifest.json"))
    assert saved and not (config.output / "student").exists()
    again = subprocess.run(
        script, env=slurm | {"SLURM_NNODES": "1"}, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resuming after step" in again.stdout and (config.output / "student").is_dir()
