"""Options that commands of several kinds have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Memory = Annotated[
    float | None,
    typer.Option(min=0.001, help="Memory in GB that it may take; default: most of what is free."),
]
Pin = Annotated[
    str | None,
    typer.Option("--manifest-sha256", metavar="SHA256", help="Open the build with this manifest alone."),
]
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        help="Public key (PEM): open a build alone that it has signed; repeatable: any of them.",
    ),
]
