"""`python -m tests.train.drive CONFIG...`: run configs one after the other, as the command line does.

With RANK and its companions in the environment, this process trains itself (the way of torchrun and Slurm);
without, every run starts its own ranks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from genrecal.core.config import load_config
from genrecal.core.errors import GenrecalError


def main() -> None:
    from genrecal.train.engine import leave
    from genrecal.train.launch import distill
    from genrecal.train.settings import RunConfig

    try:
        for path in sys.argv[1:]:
            distill(load_config(Path(path), RunConfig))
    except GenrecalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if "RANK" in os.environ:
        leave()


if __name__ == "__main__":
    main()
