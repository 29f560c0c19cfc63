"""A run as a Slurm job: the script is written beside the run, shown, and given to sbatch where asked for.

RUN-launch/job.sh          the script, slurm.sh.j2 filled in
RUN-launch/config.yaml     the resolved config that it runs, so that a requeued job runs the same one
RUN-launch/slurm-JOB.log   what the job prints, over all its starts
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from genrecal.core.config import dump_config
from genrecal.core.console import console
from genrecal.core.errors import ConfigError, Requeue, TrainError
from genrecal.core.files import write_text
from genrecal.train.rank import FINISHED
from genrecal.train.run import check_run, is_finished
from genrecal.train.settings import RunConfig

TEMPLATE = "slurm.sh.j2"
SCRIPT = "job.sh"
CONFIG = "config.yaml"


def run_slurm(config: RunConfig, *, submit: bool) -> None:
    """Write the script and show it; with `submit`, check the run and hand the script to sbatch.

    Raises:
        ConfigError: the config does not say what Slurm must know, or the run cannot be started.
        TrainError: there is no sbatch, or it refuses the script.
    """
    folder = launch_folder(config.output)
    text = render(config)
    if submit:
        if shutil.which("sbatch") is None:
            raise TrainError(
                "there is no sbatch here",
                where="distill --submit",
                fix="Call it where jobs are submitted; without --submit the script is only written",
            )
        ranks = config.launch.nodes * (config.launch.gpus_per_node or 1)
        check_run(config.model_copy(update={"engine": config.engine.model_copy(update={"ranks": ranks})}))
        if is_finished(config.output):
            console.print(f"{config.output}: {FINISHED}")
            return
    write_text(folder / CONFIG, dump_config(config))
    write_text(folder / SCRIPT, text)
    console.print(text, soft_wrap=True, markup=False)
    if not submit:
        by_hand = f"not submitted; --submit does it, or: sbatch {shlex.quote(str(folder / SCRIPT))}"
        console.print(by_hand, soft_wrap=True, markup=False)
        return
    done = subprocess.run(
        ["sbatch", "--parsable", str(folder / SCRIPT)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise TrainError(
            f"sbatch refuses it ({' '.join(done.stderr.split()) or f'exit code {done.returncode}'})",
            where=folder / SCRIPT,
        )
    # JOB or JOB;CLUSTER
    console.print(f"job {done.stdout.strip().partition(';')[0]}", markup=False)


def launch_folder(output: Path) -> Path:
    """Beside the run: the log grows while the run's own folder is sealed."""
    return output.parent / f"{output.name}-launch"


def render(config: RunConfig) -> str:
    """The script for sbatch.

    Raises:
        ConfigError: no number of GPUs, or a path that sbatch cannot take.
    """
    launch, folder = config.launch, launch_folder(config.output).absolute()
    if launch.gpus_per_node is None:
        raise ConfigError(
            "is missing: Slurm must know how many GPUs a node gives", where="launch.gpus_per_node"
        )
    for path in (folder, Path.cwd()):
        # sbatch's file names have their own marks, and a backslash among them cannot be written.
        if not str(path).isprintable() or "\\" in str(path):
            raise ConfigError(
                "has a backslash or a control character, which sbatch cannot take",
                where=repr(str(path)),
                fix="Give another output folder",
            )
    options = {
        "job-name": config.output.name,
        "nodes": launch.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": launch.gpus_per_node,
        "cpus-per-task": launch.cpus_per_node,
        "time": launch.time,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "output": f"{str(folder).replace('%', '%%')}/slurm-%j.log",
        "open-mode": "append",
        "signal": f"USR1@{60 * launch.notice_minutes}",
    }
    srun = [
        f"--ntasks={launch.nodes}",
        "--ntasks-per-node=1",
        *([f"--cpus-per-task={launch.cpus_per_node}"] if launch.cpus_per_node else []),
        "--kill-on-bad-exit=0",
        *launch.srun,
    ]
    command = launch.command or (sys.executable, "-m", "cli")
    template = SandboxedEnvironment(
        loader=PackageLoader("genrecal.train", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: every value is quoted for it below
    ).get_template(TEMPLATE)
    return template.render(
        options=[
            *(f"--{name}={for_sbatch(str(value))}" for name, value in options.items() if value is not None),
            "--requeue",
            *(for_sbatch(option) for option in launch.sbatch),
        ],
        script=shlex.quote(str(folder / SCRIPT)),
        folder=shlex.quote(str(Path.cwd())),
        setup=launch.setup,
        srun=shlex.join(srun),
        command=shlex.join([*command, "distill", str(folder / CONFIG), "--launch", "torchrun"]),
        requeue=Requeue.exit_code,
    )


def for_sbatch(value: str) -> str:
    """`value` for a line of #SBATCH: sbatch takes a character behind a backslash as it is, in quotes too."""
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", value)
