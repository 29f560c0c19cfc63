"""How a run is spread over nodes: the `launch` section of a run's config.

Nothing here changes what is trained, so a resumed run may have other settings.
"""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from genrecal.core.config import Config

# Slurm's own spellings: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, ...
TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")


class LaunchConfig(Config):
    """Settings of `genrecal distill --launch torchrun` and `--launch slurm`."""

    nodes: int = Field(default=1, ge=1)
    """Nodes."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """Ranks on each node, one for each GPU; default under torchrun: the GPUs that are there."""
    rendezvous: str | None = Field(default=None, pattern=r"^[^\s:]+:\d+$")
    """HOST:PORT where torchrun's agents of several nodes meet, HOST one of them. Slurm's script sets it."""
    job: str = Field(default="genrecal", min_length=1)
    """The name under which they meet there. Slurm's script sets it."""
    time: str | None = None
    """Slurm: time limit as sbatch takes it, for instance "2-00:00:00", in quotes."""
    partition: str | None = None
    """Slurm: partition."""
    account: str | None = None
    """Slurm: account."""
    qos: str | None = None
    """Slurm: quality of service."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """Slurm: CPU cores on each node, for all its ranks and their readers; default: what the cluster gives."""
    notice_minutes: int = Field(default=15, ge=1, le=1000)
    """Slurm: so long before the time limit the run is told to save: longer than a step and a save."""
    sbatch: tuple[str, ...] = ()
    """Slurm: further options of sbatch, for instance --exclusive."""
    srun: tuple[str, ...] = ()
    """Slurm: further options of srun, for instance --container-image=genrecal.sqsh."""
    setup: tuple[str, ...] = ()
    """Slurm: lines of shell that run first, for instance "module load cuda". They are not quoted."""
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Slurm: what starts genrecal on a node; default: this Python. In a container for instance
    [apptainer, exec, --nv, genrecal.sif, genrecal]."""

    @field_validator("time", mode="before")
    @classmethod
    def _spelled(cls, value: object) -> object:
        # YAML reads 24:00:00 without quotes as 86400, which Slurm would take for minutes.
        if isinstance(value, int):
            raise ValueError('put the time in quotes, as in "24:00:00"; alone, a number is minutes: "90"')
        if isinstance(value, str) and not TIME.fullmatch(value):
            raise ValueError(f'\'{value}\' is no time that Slurm knows, such as "24:00:00" or "2-00:00:00"')
        return value

    @field_validator("partition", "account", "qos", "sbatch", "srun", "command", "job")
    @classmethod
    def _one_line(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        words = (value,) if isinstance(value, str) else value or ()
        if any(not word.strip() or not word.isprintable() for word in words):
            raise ValueError("is empty or holds a line break or another control character")
        return value
