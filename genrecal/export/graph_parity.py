"""The graphs of a build against torch in float32, on the inputs that the family's own processor makes.

    reference -> vision_encoder -> features, in torch's place of them
              -> embed_tokens -> embeddings
                 torch's embeddings -> decoder: the prompt, then the answer behind its past -> logits

For every family, also where this machine cannot hold the whole model: one graph is open at a time, and its
weights stay in the file that they are mapped from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edge import build as layout
from genrecal.core.errors import BuildError
from genrecal.export.freed import return_freed_memory
from genrecal.export.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParity:
    """The graphs against torch; differences are the largest absolute ones."""

    queries: int
    answer_tokens: int
    difference: dict[str, float]
    """Graph -> difference of its output."""
    largest: dict[str, float]
    """Graph -> the largest absolute value that torch has there."""
    relative_logits_error: float
    """Norm of the logits' difference over their norm."""
    forced_top1: float
    """Share of answer tokens whose likeliest token is torch's."""
    worst_query: int


def compare_graphs(references: Sequence[Reference], graphs: dict[str, Path]) -> GraphParity:
    """Run the graphs one after the other on what torch was fed, and measure the differences."""
    difference = {layout.VISION_ENCODER: 0.0, layout.EMBED_TOKENS: 0.0, layout.DECODER: 0.0}

    magnitude = dict.fromkeys(difference, 0.0)

    def note(graph: str, found: NDArray[Any], expected: NDArray[Any]) -> float:
        """Another shape or a NaN counts as infinite."""
        largest = float(np.abs(found - expected).max(initial=0)) if found.shape == expected.shape else np.inf
        largest = np.inf if np.isnan(largest) else largest
        difference[graph] = max(difference[graph], largest)
        magnitude[graph] = max(magnitude[graph], float(np.abs(expected).max(initial=0)))
        return largest

    # Each session is gone before the next one opens.
    for reference, features_MD in zip(references, image_features(references, graphs), strict=True):
        if features_MD is not None:
            note(layout.VISION_ENCODER, features_MD, reference.embeds_SD[reference.is_image_S])
    for reference, embeds_SD in zip(references, embeddings(references, graphs), strict=True):
        text_S = ~reference.is_image_S
        note(layout.EMBED_TOKENS, embeds_SD[text_S], reference.embeds_SD[text_S])
    return_freed_memory()
    session = open_graph(graphs[layout.DECODER])
    tokens = top1 = worst = 0
    squared_error = squared = largest = 0.0
    for number, reference in enumerate(references):
        logits_AV = forced_logits(session, reference)
        expected_AV = reference.logits_AV
        found = note(layout.DECODER, logits_AV, expected_AV)
        largest, worst = max((largest, worst), (found, number))
        squared_error += float(np.square(logits_AV - expected_AV, dtype=np.float64).sum())
        squared += float(np.square(expected_AV, dtype=np.float64).sum())
        tokens += len(expected_AV)
        top1 += int((logits_AV.argmax(1) == expected_AV.argmax(1)).sum())
    return GraphParity(
        queries=len(references),
        answer_tokens=tokens,
        difference=difference,
        largest=magnitude,
        relative_logits_error=(squared_error / squared) ** 0.5,
        forced_top1=top1 / tokens,
        worst_query=worst,
    )


def require_same(found: GraphParity, *, tolerance: float, where: Path) -> None:
    """The gate that float32 graphs pass.

    Raises:
        BuildError: a graph's output differs by more than `tolerance`, of its largest value where that is
            above one.
    """
    for graph, difference in found.difference.items():
        allowed = tolerance * max(1.0, found.largest[graph])
        if not difference <= allowed:  # written so that a NaN fails
            raise BuildError(
                f"the fp32 graphs are not this checkpoint: the output of {graph} differs by "
                f"{difference:.2g}, allowed is {allowed:.2g}",
                where=where,
                fix="Please report this with the model's config.json",
            )


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """A session that uses the weights where the file is mapped, so that they cost no memory of their own.

    Quantized products alone are packed, as the runtime packs them: unpacked, they compute in other numbers.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Packing copies all weights; folding and fusing turn those of float16 into float32.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Neither is memory kept between runs, which are of many sizes.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    if not _has_blocks(path):
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],
        )
    except Exception as error:  # each of ONNX Runtime's errors is a class of its own below Exception
        line = " ".join(str(error).split())[:300]
        raise BuildError(f"onnxruntime cannot load it ({line})", where=path) from error


def first_logits(
    session: onnxruntime.InferenceSession, embeds_SD: NDArray[np.float32], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """logits_V of the decoder's graph for the first token of an answer to a prompt.

    Args:
        session: the decoder.
        embeds_SD: of the prompt.
        positions: as the graph takes them, [3, 1, S] or [1, S].
    """
    feed = {
        "inputs_embeds": embeds_SD[None],
        "attention_mask": np.ones((1, len(embeds_SD)), np.int64),
        "position_ids": np.ascontiguousarray(positions),
        "num_logits_to_keep": np.array(1, np.int64),
    }
    logits_V: NDArray[np.float32] = session.run(["logits"], {**feed, **_empty_past(session)})[0][0, 0]
    return logits_V


def decoder_feed(session: onnxruntime.InferenceSession, reference: Reference) -> dict[str, NDArray[Any]]:
    """Prompt and answer at once, for a decoder or a part of it, which may need fewer inputs."""
    feed = {
        "inputs_embeds": reference.embeds_SD[None],
        "attention_mask": np.ones((1, len(reference.embeds_SD)), np.int64),
        "position_ids": np.ascontiguousarray(reference.positions),
        "num_logits_to_keep": np.array(0, np.int64),
        **_empty_past(session),
    }
    return {entry.name: feed[entry.name] for entry in session.get_inputs() if entry.name in feed}


def _has_blocks(path: Path) -> bool:
    model = onnx.load(path, load_external_data=False)
    return any(node.op_type == "MatMulNBits" for node in model.graph.node)


def _empty_past(session: onnxruntime.InferenceSession) -> dict[str, NDArray[Any]]:
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        entry.name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), types[entry.type])
        for entry in session.get_inputs()
        if entry.name.startswith("past_key_values.")
    }


def image_features(
    references: Sequence[Reference], graphs: dict[str, Path]
) -> list[NDArray[np.float32] | None]:
    return_freed_memory()
    session = open_graph(graphs[layout.VISION_ENCODER])
    found: list[NDArray[np.float32] | None] = []
    for reference in references:
        width = reference.embeds_SD.shape[1]
        calls = [session.run(["image_features"], feed)[0].reshape(-1, width) for feed in reference.feeds]
        found.append(np.concatenate(calls) if calls else None)
    return found


def embeddings(references: Sequence[Reference], graphs: dict[str, Path]) -> list[NDArray[np.float32]]:
    return_freed_memory()
    session = open_graph(graphs[layout.EMBED_TOKENS])
    return [
        session.run(["inputs_embeds"], {"input_ids": reference.ids_S[None, :-1]})[0][0]
        for reference in references
    ]


def forced_logits(session: onnxruntime.InferenceSession, reference: Reference) -> NDArray[np.float32]:
    """Logits_AV of the answer: the prompt first, then the answer's tokens behind its past."""
    past = _empty_past(session)
    outputs = ["logits", *(name.replace("past_key_values", "present", 1) for name in past)]
    pieces = []
    end = len(reference.embeds_SD)
    for start, stop in ((0, reference.prompt), (reference.prompt, end)):
        if start < stop:
            feed = {
                "inputs_embeds": reference.embeds_SD[None, start:stop],
                "attention_mask": np.ones((1, stop), np.int64),
                "position_ids": np.ascontiguousarray(reference.positions[..., start:stop]),
                # Of the prompt, the last position alone predicts a token of the answer.
                "num_logits_to_keep": np.array(0 if start else 1, np.int64),
            }
            logits_1KV, *present = session.run(outputs, {**feed, **past})
            past = dict(zip(past, present, strict=True))
            pieces.append(logits_1KV[0])
    return np.concatenate(pieces)
