"""The command line: parse, make a config, one call. Imports stand inside the commands, so `--help` is quick
and a machine without torch can run the commands that need none."""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genrecal.commands import benching, building, data, running, training
from genrecal.core.console import errors
from genrecal.core.errors import BenchError, ConfigError, GenrecalError

# What these exit with says what a gate found, 1 or 2 among it: an error of theirs has another code.
GATES = ("bench",)
VERDICTS = (1, 2)
EX_USAGE, EX_SOFTWARE = 64, 70  # of sysexits.h
# typer brings its own click or uses the installed one; either way this is what it raises.
UsageError: Any = typer.BadParameter.__mro__[1]


class OneLineErrors(TyperGroup):
    """Turns every error that a user can cause into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GenrecalError as error:
            code = no_verdict(ctx, error.exit_code)
            if error.reported:
                raise typer.Exit(code) from None
            fail(str(error), code)
        except ModuleNotFoundError as error:
            extra = EXTRA_OF.get((error.name or "").partition(".")[0])
            if extra is None:
                self._crash(ctx)
                raise
            code = no_verdict(ctx, ConfigError.exit_code)
            fail(f"'{error.name}' is not installed. Install genrecal[{extra}]", code)
        except OSError as error:
            if error.errno is None:
                self._crash(ctx)
                raise
            fail(f"{error.filename or 'disk'}: {error.strerror}", no_verdict(ctx, GenrecalError.exit_code))
        except UsageError as error:
            if ctx.invoked_subcommand in GATES:
                error.exit_code = EX_USAGE
            raise
        except (typer.Exit, typer.Abort):
            raise
        except Exception:
            self._crash(ctx)
            raise

    def _crash(self, ctx: Any) -> None:
        """Leave a gate with a code of its own; elsewhere Python's 1 will do."""
        if ctx.invoked_subcommand in GATES:
            traceback.print_exc()
            raise typer.Exit(EX_SOFTWARE) from None


def no_verdict(ctx: Any, exit_code: int) -> int:
    """An error's exit code, or of a gate's error one that is no verdict."""
    gated = ctx.invoked_subcommand in GATES and exit_code in VERDICTS
    return BenchError.exit_code if gated else exit_code


# Which extra brings a package that a command found missing.
EXTRA_OF = {
    "torch": "train",
    "transformers": "train",
    "deepspeed": "train",
    "peft": "train",
    "sklearn": "train",
    "safetensors": "train",
    "optimum": "export",
    "onnx": "export",
    "onnxruntime": "edge",
    "tokenizers": "edge",
    "cryptography": "sign",
    "anyio": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "starlette": "serve",
    "pyarrow": "bench",
    "datasets": "train",
    "webdataset": "train",
    "braceexpand": "train",
    "filelock": "train",
    "sentencepiece": "train",
    "google": "train",  # protobuf
    "pandas": "bench",
    "scipy": "bench",
    "openai": "bench",
    "tenacity": "bench",
    "huggingface_hub": "bench",
    "psutil": "bench",
    "matplotlib": "bench",
}


def fail(line: str, exit_code: int) -> None:
    errors.print(f"error: {line}", soft_wrap=True, markup=False)
    raise typer.Exit(exit_code)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distil a large vision-language model into a small one that runs on an edge device without torch.",
)
for _part in (training, building, running, benching):
    app.add_typer(_part.app)
app.add_typer(data.app, name="data", no_args_is_help=True, help="Look after training and test data.")


def _version(asked: bool) -> None:
    from genrecal import __version__

    if asked:
        typer.echo(f"genrecal {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None: ...


if __name__ == "__main__":
    app()
