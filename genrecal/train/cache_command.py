"""`genrecal cache`: a run's caches of teacher features without the run, so that others can wait for them."""

from __future__ import annotations

import torch.distributed as dist

from genrecal.core.config import dump_config
from genrecal.core.console import console
from genrecal.core.files import write_text
from genrecal.data.mixture import read_mixture
from genrecal.train.engine import join_ranks
from genrecal.train.labels import teacher_labels
from genrecal.train.run import CONFIG, DATA_CACHE
from genrecal.train.settings import RunConfig
from genrecal.train.stage import stage_samples
from genrecal.train.stages import METHODS
from genrecal.train.stopping import listening
from genrecal.train.teacher_cache import serves, stored_teachers


def fill_caches(config: RunConfig) -> None:
    """Compute what the caches lack for every stage that they serve; every rank calls it.

    Where the teacher's own answers are learned, they are generated first, into the run's folder.
    """
    with listening():
        join_ranks(config.engine.timeout_minutes)
        samples = read_mixture(config.data, cache=config.output.parent / DATA_CACHE)
        labels = None
        if config.learned_labels == "teacher":
            if dist.get_rank() == 0:
                write_text(config.output / CONFIG, dump_config(config))
            labels = teacher_labels(config, samples)
        for name in METHODS[config.method].stages:
            stage = config.plan(name)
            if serves(config, stage):
                found = stored_teachers(config, stage, stage_samples(config, name, samples, labels))
                if dist.get_rank() == 0:
                    for one in found:
                        console.print(f"{one.store.cache}: all that {name} reads is there")
        dist.barrier()
