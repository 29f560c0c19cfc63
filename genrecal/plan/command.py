"""`genrecal plan` and `genrecal distill --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrecal.core.config import load_config, parse_config
from genrecal.core.console import console
from genrecal.core.files import write_json
from genrecal.plan.plan import make_plan
from genrecal.plan.settings import PlanConfig
from genrecal.plan.show import as_json, show_plan
from genrecal.train.run import check_run
from genrecal.train.settings import RunConfig


def plan_command(
    config: RunConfig, *, file: Path | None, given: Mapping[str, Any], json_file: Path | None
) -> None:
    """Print the plan of a run.

    Args:
        config: the run.
        file: a PlanConfig as YAML; None: its defaults.
        given: what goes over it, by key as in `machine.gpu`; None: not given.
        json_file: where the plan goes as JSON, too.

    Raises:
        GenrecalError: something of it cannot be used.
    """
    content = load_config(file, PlanConfig).model_dump(exclude_unset=True) if file else {}
    for key, value in given.items():
        if value is not None:
            section, _, name = key.rpartition(".")
            (content.setdefault(section, {}) if section else content)[name] = value
    plan = make_plan(config, parse_config(content, PlanConfig, where=file or "plan"))
    show_plan(plan)
    if json_file:
        write_json(json_file, as_json(plan))
        console.print(f"written: {json_file}")


def dry_run(config: RunConfig) -> None:
    """All that `distill` checks before it starts a rank, and the run's plan; nothing is written or trained.

    Raises:
        GenrecalError: the run could not start.
    """
    check_run(config)
    show_plan(make_plan(config, PlanConfig()))
    console.print("dry run: nothing was trained. `genrecal plan` plans it for other machines")
