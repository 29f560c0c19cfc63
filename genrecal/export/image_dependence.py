"""Does a build see? The same question about different images must not have the same answer.

    image -> vision_encoder -> features -+
                                         +-> decoder -> logits of the answer's first token
    question -> embed_tokens ------------+

Parity compares a build with its checkpoint, so a checkpoint that is blind passes it, and so does a quantized
build whose answers are right on average. Here the images are of one size, so that the prompts are the same
token by token, and all that can differ is what the images made of them.

Differences are relative: the norm of the difference of two outputs over the larger norm of both, after what
all their values share is taken away (a softmax does not see a number that is added to all logits). Where a
graph loses the image they are zero, for ONNX Runtime computes the same from the same; where it is scaled away
they are what rounding leaves. A stream of L layers adds 2 L roundings of half a unit u in the last place: the
norms' relative difference between two such sums is about u * sqrt(2 L / 3) * sqrt(2), 12 u for 100 layers.
So all pairs of images must differ by more than ROUNDINGS * u, u of the type that the graph computes in.

Source of the idea: a red, a green and a blue image that get one answer (llm-compressor, issue 2072).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers import AutoConfig

from edge import build as layout
from edge.model import EdgeModel
from edge.positions import plain_positions, rope_positions
from genrecal.core.errors import BuildError
from genrecal.data.inputs import encode_prompt
from genrecal.export.freed import return_freed_memory
from genrecal.export.graph_parity import first_logits, open_graph
from genrecal.export.reference import FEEDS

QUESTION = "Which color and which shape is shown in the image?"
ROUNDINGS = 16
SIDE = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDependence:
    """How far outputs for different images are from each other, relative to their norms."""

    images: tuple[str, ...]
    features: float
    """Of the two images whose features are closest."""
    features_pair: tuple[str, str]
    logits: float
    """The same of the logits of the answer's first token."""
    logits_pair: tuple[str, str]
    first_tokens: int
    """Different likeliest first tokens."""
    threshold: float
    """What rounding explains."""


def probes() -> dict[str, Image.Image]:
    """Name -> image: solid colours, and shapes on one background; all of one size."""
    images = {color: Image.new("RGB", (SIDE, SIDE), color) for color in ("red", "green", "blue")}
    for shape in ("circle", "square"):
        image = Image.new("RGB", (SIDE, SIDE), "white")
        draw = ImageDraw.Draw(image)
        box = (SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4)
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill="black")
        images[shape] = image
    return images


def measure_build(folder: Path) -> ImageDependence:
    """Ask a build about the probes, as the device does."""
    model = EdgeModel.open(folder, verify=False, reuse=False)
    images = probes()
    features, logits = {}, {}
    for name, image in images.items():
        features[name] = model.image_features((image, QUESTION))
        logits[name] = model.forced_logits((image, QUESTION), [])[0]
    return compare(features, logits, computed_in=model.sessions.layout.dtype)


def measure_graphs(student: Path, processor: Any, graphs: dict[str, Path]) -> ImageDependence:
    """The same one graph at a time, for builds that this machine cannot open whole.

    Args:
        student: the folder that holds the config.
        processor: the student's.
        graphs: graph -> its file.
    """
    config = AutoConfig.from_pretrained(student)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompts = {
        name: encode_prompt(processor, [{"role": "user", "content": content}], [image])
        for name, image in probes().items()
    }
    # Each session is gone before the next one opens.
    features = _features(prompts, config, graphs[layout.VISION_ENCODER])
    embeds = _embeddings(prompts, graphs[layout.EMBED_TOKENS])
    return_freed_memory()
    session = open_graph(graphs[layout.DECODER])
    inputs = {entry.name: entry for entry in session.get_inputs()}
    logits = {}
    for name, prompt in prompts.items():
        ids_S = prompt.ids.numpy()
        embeds[name][ids_S == config.image_token_id] = features[name]
        if len(inputs["position_ids"].shape) == 3:
            positions = rope_positions(
                ids_S,
                prompt.vision["image_grid_thw"].numpy(),
                image_token=config.image_token_id,
                merge=config.vision_config.spatial_merge_size,
            ).ids_AS[:, None]
        else:
            positions = plain_positions(len(ids_S)).ids_AS
        logits[name] = first_logits(session, embeds[name], positions)
    past = next(entry for name, entry in inputs.items() if name.startswith("past_key_values."))
    return compare(features, logits, computed_in=np.float16 if past.type == "tensor(float16)" else np.float32)


def compare(
    features: dict[str, NDArray[Any]], logits: dict[str, NDArray[Any]], *, computed_in: Any
) -> ImageDependence:
    """The closest pairs of the features and of the logits, image by image."""
    seen, features_pair = _closest(features)
    answered, logits_pair = _closest(logits)
    return ImageDependence(
        images=tuple(features),
        features=seen,
        features_pair=features_pair,
        logits=answered,
        logits_pair=logits_pair,
        first_tokens=len({int(row_V.argmax()) for row_V in logits.values()}),
        # eps is the distance of 1 to the next number, twice the unit that a rounding can take.
        threshold=ROUNDINGS * float(np.finfo(computed_in).eps) / 2,
    )


def require_seen(found: ImageDependence, *, where: Path) -> None:
    """The gate that every build passes.

    Raises:
        BuildError: two images have the same features, or the same logits, but for rounding; it names the
            graph that loses them.
    """
    for output, difference, pair, graph in (
        ("image features", found.features, found.features_pair, layout.VISION_ENCODER),
        ("first answer token's logits", found.logits, found.logits_pair, layout.DECODER),
    ):
        if not difference > found.threshold:  # written so that a NaN fails
            raise BuildError(
                f"{graph} loses the image: the {output} of '{pair[0]}' and '{pair[1]}' differ by "
                f"{difference:.2g}, rounding explains {found.threshold:.2g}",
                where=where,
                fix="Ask the student itself about both images; where it tells them apart, "
                "export it in a higher precision",
            )


def _closest(outputs: dict[str, NDArray[Any]]) -> tuple[float, tuple[str, str]]:
    """The smallest difference of two outputs, and of which images; other shapes or a NaN: not a number."""
    differences = {
        (first, second): _difference(outputs[first], outputs[second])
        for first, second in combinations(outputs, 2)
    }
    # min() would go past a NaN.
    pair = next((pair for pair, found in differences.items() if np.isnan(found)), None) or min(
        differences, key=lambda pair: differences[pair]
    )
    return differences[pair], pair


def _difference(first: NDArray[Any], second: NDArray[Any]) -> float:
    if first.shape != second.shape:
        return float("nan")
    one, other = (value.astype(np.float64) - value.mean(dtype=np.float64) for value in (first, second))
    norm = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return float(np.linalg.norm(one - other)) / norm if norm else 0.0


def _features(prompts: dict[str, Any], config: Any, graph: Path) -> dict[str, NDArray[np.float32]]:
    return_freed_memory()
    session = open_graph(graph)
    found = {}
    for name, prompt in prompts.items():
        feeds: Sequence[Any] = FEEDS[config.model_type](prompt.vision, config)
        parts = [session.run(["image_features"], feed)[0] for feed in feeds]
        found[name] = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    return found


def _embeddings(prompts: dict[str, Any], graph: Path) -> dict[str, NDArray[np.float32]]:
    return_freed_memory()
    session = open_graph(graph)
    return {
        name: session.run(["inputs_embeds"], {"input_ids": prompt.ids.numpy()[None]})[0][0]
        for name, prompt in prompts.items()
    }
