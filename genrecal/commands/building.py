"""Commands that make a build of a student and look after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrecal.commands.options import Pin, TrustedKeys
from genrecal.core.errors import ConfigError

app = typer.Typer()


@app.command(epilog="Example: `genrecal export runs/demo --int8`")
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a plain student folder.")],
    int8: Annotated[bool, typer.Option("--int8", help="8 bits a weight (the default).")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="4 bits a weight of the language model.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Leave the weights as they are.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and activations in float16.")] = False,
    target: Annotated[
        str, typer.Option(help="What the build is made for: cpu, jetson or jetson-tensorrt.")
    ] = "cpu",
    output: Annotated[Path | None, typer.Option(help="The build folder; default: RUN/build-int8.")] = None,
    client: Annotated[
        str, typer.Option("--for", metavar="CLIENT", help="What runs the build: genrecal or transformers.js.")
    ] = "genrecal",
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA adapter of the student; merged first, and proven.")
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATA",
            help="Training data to calibrate with, or a config for its data; repeatable. Default: the run's.",
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of answer tokens that must be the checkpoint's; default: int8 0.98, int4 0.95.",
        ),
    ] = None,
    keep_fp16: Annotated[
        str | None,
        typer.Option(metavar="auto|NAME,...", help="Weights of the language model that stay in float16."),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the build; private.")
    ] = None,
    push_student: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the student too; private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="What is uploaded anew is public.")] = False,
) -> None:
    """Write an ONNX build of a student, with a parity report."""
    asked = [
        name for name, given in (("int8", int8), ("int4", int4), ("fp16", fp16), ("fp32", fp32)) if given
    ]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in asked)} exclude each other", where="export")
    if push_student and adapter:
        raise ConfigError(
            "would upload the student without its adapter",
            where="export --push-student",
            fix="Merge it first (PEFT's merge_and_unload, save_pretrained) and export that folder",
        )
    from genrecal.export.build import export_run
    from genrecal.export.publish import publish
    from genrecal.export.student import find_student

    precision = asked[0] if asked else "int8"
    suffix = precision if target == "cpu" else f"{precision}-{target}"
    build = export_run(
        run,
        output or run / f"build-{suffix}",
        precision=precision,
        target=target,
        client=client,
        adapter=adapter,
        calibration=calibration or (),
        min_agreement=min_agreement,
        keep_fp16=keep_fp16.split(",") if keep_fp16 and keep_fp16 != "auto" else keep_fp16 or (),
    )
    for folder, repository in ((build, push_to_hub), (find_student(run).folder, push_student)):
        if repository is not None:
            typer.echo(f"uploaded: {publish(folder, repository, private=not public)}")


@app.command(epilog="Example: `genrecal lint runs/demo/build-fp16 --target jetson`")
def lint(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    target: Annotated[
        str | None, typer.Option(help="cpu, jetson or jetson-tensorrt; default: what the build is made for.")
    ] = None,
) -> None:
    """Check that a device can run every node of a build where it belongs; exit code 5 where it cannot."""
    from genrecal.export.linter import lint_build

    lint_build(build, target)


@app.command(epilog="Example: `genrecal sign runs/demo/build-int8 --key owner.pem`")
def sign(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM), as OpenSSL makes it.")],
) -> None:
    """Check a build and sign its manifest; devices that trust the key open no other build."""
    from edge.install import sign as run

    run(build, key)


@app.command(epilog="Example: `genrecal install build-int8 /opt/model --trusted-key owner.pub.pem`")
def install(
    build: Annotated[Path, typer.Argument(help="A build folder.")],
    slot: Annotated[Path, typer.Argument(help="Where the device keeps its builds; SLOT/current is in use.")],
    manifest_sha256: Pin = None,
    trusted_key: TrustedKeys = None,
) -> None:
    """Copy a build to a device's slot, check it and switch to it; the one before it is kept."""
    from edge.install import install_command as run

    run(build, slot, manifest_sha256=manifest_sha256, trusted_keys=trusted_key or ())


@app.command(epilog="Example: `genrecal rollback /opt/model`")
def rollback(
    slot: Annotated[Path, typer.Argument(help="The folder of `genrecal install`.")],
    trusted_key: TrustedKeys = None,
) -> None:
    """Switch back to the build before the current one."""
    from edge.install import rollback_command as run

    run(slot, trusted_keys=trusted_key or ())


@app.command(epilog="Example: `genrecal wheelhouse wheels --python 3.10 --extra edge`")
def wheelhouse(
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    python: Annotated[str, typer.Option(help="The device's Python.")] = "3.10",
    machine: Annotated[str, typer.Option(help="aarch64 or x86_64.")] = "aarch64",
    glibc: Annotated[str, typer.Option(help="The device's C library; JetPack 6: 2.35, 7: 2.39.")] = "2.35",
    extra: Annotated[
        list[str] | None,
        typer.Option(help="edge, serve, sign or bench; repeatable. Default: edge and serve."),
    ] = None,
    add: Annotated[list[Path] | None, typer.Option(help="A wheel that goes with them; repeatable.")] = None,
) -> None:
    """Collect all wheels that an offline device needs."""
    from edge.wheelhouse import collect, target_of

    collect(
        output, extras=extra or ("edge", "serve"), target=target_of(python, machine, glibc), added=add or ()
    )
