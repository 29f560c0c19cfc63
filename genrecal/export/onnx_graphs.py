"""A checkpoint as ONNX graphs: Optimum's exporter traces a skeleton, then the weights come from disk."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from optimum.exporters.onnx import onnx_export_from_model

from genrecal.core.errors import BuildError
from genrecal.core.files import read_json
from genrecal.export import vision_attention
from genrecal.export.families import graphs_of
from genrecal.export.skeleton import Skeleton, load_skeleton
from genrecal.export.stitch import stitch

# The newest onnxruntime for Python 3.10 on aarch64 (1.23) runs it too.
OPSET = 18
# precision of a graph as it is traced -> what it computes in
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def export_graphs(
    student: Path,
    folder: Path,
    *,
    precision: str = "fp32",
    suffix: str = "",
    only: Collection[str] | None = None,
    vision_form: str = vision_attention.FUSED,
) -> dict[str, Path]:
    """Write graphs of a student as `folder/<name><suffix>.onnx`, large weights beside them.

    The memory that it takes is about that of the largest weight.

    Args:
        student: a plain Hugging Face folder of a family in `FAMILIES`.
        folder: where the graphs go; made if it is not there.
        precision: one of `DTYPES`. In fp16, norms, rotary positions and softmax compute in float32.
        suffix: of the file names.
        only: names of the graphs that are written; None: all of them.
        vision_form: of the vision encoder's attention, `vision_attention.FUSED` or `PARTS`.

    Returns:
        The `.onnx` files by the names of their graphs.

    Raises:
        ModelError: no such family, or the folder lacks weights.
        BuildError: the exporter failed; its last line is quoted.
    """
    graphs = graphs_of(read_json(student / "config.json").get("model_type"), where=student)
    if only is not None:
        graphs = {name: graph for name, graph in graphs.items() if name in only}
    dtype = DTYPES[precision]
    skeleton = load_skeleton(student, dtype, vision_form=vision_form)
    folder.mkdir(parents=True, exist_ok=True)
    # Optimum also writes configs and a tokenizer of its own making; only the graphs leave this folder.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as temporary:
        with _quiet(student):
            modules = {name: graph.module(skeleton.model) for name, graph in graphs.items()}
            configs = {name: graph.config(skeleton.model.config) for name, graph in graphs.items()}
            names = {name: skeleton.names(module) for name, module in modules.items()}
            _trace(skeleton, modules, configs, Path(temporary))
        paths = {name: folder / f"{name}{suffix}.onnx" for name in graphs}
        for name, path in paths.items():
            stitch(
                Path(temporary) / f"{name}.onnx",
                path,
                names=names[name],
                weights=skeleton.weights,
                dtype=dtype,
                sizes=configs[name].sizes,
            )
    return paths


def _trace(skeleton: Skeleton, modules: dict, configs: dict, folder: Path) -> None:
    onnx_export_from_model(
        skeleton.model,
        folder,
        task="image-text-to-text",
        opset=OPSET,
        custom_onnx_configs=configs,
        fn_get_submodels=lambda _: modules,
        no_post_process=True,
        do_constant_folding=False,  # stand-ins are no constants
        do_validation=False,  # the gates compare whole answers, not Optimum's one random input
    )


@contextlib.contextmanager
def _quiet(where: str | Path) -> Iterator[None]:
    """Keep what the exporters print away from the terminal, unless they fail."""
    said, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        last = " ".join(f"{error}".split())[-300:] or type(error).__name__
        raise BuildError(f"the ONNX export failed ({last})", where=where) from error
    finally:
        logging.disable(before)
