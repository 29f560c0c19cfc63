"""The trackers themselves: what each library is asked to do; only `track.py` calls them, from their threads.

Every import stands in a function: none of the libraries is needed to train. A resumed run repeats the steps
since its last checkpoint, with the same figures; W&B and MLflow keep the first, TensorBoard the second,
trackio both.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genrecal.core.errors import GenrecalError
from genrecal.core.files import read_json, write_json

# MLflow's own limits.
PARAMETER_CHARACTERS = 6000
PARAMETERS_AT_ONCE = 100
# What its names may not hold: the term `kl@1` of a second teacher is logged as `kl_1`. On Windows no colon.
REFUSED = re.compile(r"[^/\w.\- ]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which run the figures are of."""

    folder: Path  # RUN/trackers
    name: str
    project: str
    config: dict[str, Any]


class Sink(Protocol):
    """A tracker that has started."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/trackers/tensorboard."""

    def __init__(self, target: Target, resume: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Any = SummaryWriter
        self._target, self._resume = target, resume
        self._writer: Any = None

    def log(self, values: dict[str, float], step: int) -> None:
        if self._writer is None:
            # purge_step takes back what was logged from this step on before the run was resumed.
            self._writer = self._open(
                str(self._target.folder / "tensorboard"), purge_step=step if self._resume else None
            )
            if not self._resume:
                self._writer.add_text("config", f"```\n{json.dumps(self._target.config, indent=2)}\n```")
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A W&B run, with its files in RUN/trackers/wandb; WANDB_MODE, WANDB_ENTITY and the like hold."""

    def __init__(self, target: Target, resume: bool) -> None:
        import wandb

        # Otherwise W&B asks for a key on the terminal, and waits.
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise GenrecalError("no credentials", fix="Run `wandb login`, or set WANDB_MODE=offline")
        folder = target.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(target, "wandb", resume, lambda: uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=target.project,
            name=target.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=target.config,
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self._run.starting_step:  # it would warn of each step that it has already
            self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A trackio run, kept where `trackio show` looks; TRACKIO_DIR, TRACKIO_SPACE_ID and the like hold."""

    def __init__(self, target: Target, resume: bool) -> None:
        import trackio

        # trackio knows a run by its name: two run folders of one name are two runs.
        identity = _identity(target, "trackio", resume, lambda: uuid.uuid4().hex[:6])
        self._run = trackio.init(
            project=target.project, name=f"{target.name}-{identity}", config=target.config, resume="allow"
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run at MLFLOW_TRACKING_URI; where that is not set, in RUN/trackers/mlflow."""

    def __init__(self, target: Target, resume: bool) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow asks for this word before it keeps a run in plain files; a database needs more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (target.folder / "mlflow").resolve().as_uri()
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        self._run = _identity(target, "mlflow", resume, lambda: self._create(target))
        self._client.update_run(self._run, status="RUNNING")
        self._logged = self._last_step() if resume else -1

    def log(self, values: dict[str, float], step: int) -> None:
        if step <= self._logged:
            return
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run,
            metrics=[
                self._metric(REFUSED.sub("_", name), value, now, step) for name, value in values.items()
            ],
        )

    def close(self) -> None:
        self._client.set_terminated(self._run)

    def _create(self, target: Target) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(target.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(target.project)
        run = str(self._client.create_run(number, run_name=target.name).info.run_id)
        settings = [
            Param(REFUSED.sub("_", key), text[:PARAMETER_CHARACTERS])
            for key, text in _settings(target.config).items()
        ]
        for start in range(0, len(settings), PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=settings[start : start + PARAMETERS_AT_ONCE])
        return run

    def _last_step(self) -> int:
        """The last step that anything was logged for; -1 for none."""
        names = self._client.get_run(self._run).data.metrics
        return max(
            (one.step for name in names for one in self._client.get_metric_history(self._run, name)),
            default=-1,
        )


TRACKERS: dict[str, Callable[[Target, bool], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def _identity(target: Target, name: str, resume: bool, create: Callable[[], str]) -> str:
    """The tracker's own name for this run, kept in RUN/trackers/NAME.json so that a resumed run finds it."""
    path = target.folder / f"{name}.json"
    if resume and path.is_file():
        return str(read_json(path)["run"])
    identity = create()
    write_json(path, {"run": identity})
    return identity


def _settings(config: dict[str, Any], path: str = "") -> dict[str, str]:
    """The config's leaves by their path, as texts."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _settings(value, f"{path}{key}.")
        else:
            found[path + key] = value if isinstance(value, str) else json.dumps(value)
    return found
