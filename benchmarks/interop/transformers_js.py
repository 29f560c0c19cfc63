"""transformers.js in Node and our runtime answer the same questions from builds of the same student.

    npm install --ignore-scripts --prefix benchmarks/interop      # once; Node 18 or newer
    python -m benchmarks.interop.transformers_js STUDENT

Two builds of a Qwen2-VL student, one for each; every image is of a size that neither resizes, as the two
resize with different arithmetic. Prompt ids and greedy tokens must be equal.

    RESULTS/interop_transformers_js.json    by precision: versions, and both answers to every question
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw

from genrecal.core.console import console, errors
from genrecal.core.errors import BenchError, GenrecalError
from genrecal.core.files import read_json, write_json

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
NAME = "interop_transformers_js.json"
# Image tokens from top to bottom and from left to right.
SHAPES = ((2, 3), (4, 4), (5, 2))
QUESTIONS = ("how many circles are in the image?", "name the tallest bar", "which color is shown?")


def main(
    student: Annotated[Path, typer.Argument(help="A run folder, or a plain Qwen2-VL folder.")],
    precision: Annotated[str, typer.Option(help="Of both builds: fp32, fp16, int8 or int4.")] = "fp32",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 24,
    packages: Annotated[Path, typer.Option(help="Where npm installed.")] = HERE,
    results: Annotated[Path, typer.Option(help="Folder of the result.")] = RESULTS,
) -> None:
    """Make both builds, ask both, and compare."""
    installed = packages / "node_modules" / "@huggingface" / "transformers" / "package.json"
    if shutil.which("node") is None or not installed.is_file():
        raise BenchError(
            "needs Node and transformers.js",
            fix=f"npm install --ignore-scripts --prefix {packages}",
        )
    with tempfile.TemporaryDirectory() as scratch:
        answers = compare(student, Path(scratch), precision, max_new_tokens, packages)
    equal = sum(answer["equal"] for answer in answers)
    result = {
        "questions": len(answers),
        "equal": equal,
        "answers": answers,
        "versions": {
            "@huggingface/transformers": read_json(installed)["version"],
            "onnxruntime": version("onnxruntime"),
        },
    }
    path = results / NAME
    write_json(path, {**(read_json(path) if path.is_file() else {}), precision: result})
    console.print(f"{equal} of {len(answers)} answers have the same prompt and the same tokens")
    if equal < len(answers):
        raise BenchError("transformers.js answers otherwise", where=results / NAME)


def compare(
    student: Path, scratch: Path, precision: str, max_new_tokens: int, packages: Path
) -> list[dict[str, Any]]:
    """Both answers to every question about every image."""
    from edge.model import EdgeModel
    from genrecal.export.build import export_run

    ours = export_run(student, scratch / "ours", precision=precision, min_agreement=0)
    theirs = export_run(
        student, scratch / "theirs", precision=precision, client="transformers.js", min_agreement=0
    )
    model = EdgeModel.open(ours)
    settings = model.build.preprocessor_config
    token_px = settings["patch_size"] * settings["merge_size"]
    script = packages / "answer.mjs"
    if packages != HERE:
        shutil.copyfile(HERE / script.name, script)
    answers = []
    for number, (rows, columns) in enumerate(SHAPES):
        image = scratch / f"{number}.png"
        _drawing(columns * token_px, rows * token_px, number).save(image)
        for question in QUESTIONS:
            arguments = [str(theirs), str(image), question, str(max_new_tokens)]
            printed = subprocess.run(
                ["node", str(script), *arguments], capture_output=True, text=True, check=False
            )
            if printed.returncode:
                lines = printed.stderr.strip().splitlines()[-20:]
                raise BenchError(f"node ended with {printed.returncode}: {' '.join(lines)[-600:]}")
            found = json.loads(printed.stdout.strip().splitlines()[-1])
            with Image.open(image) as picture:
                query = (picture.convert("RGB"), question)
                prompt_ids = model.prompt(query).ids_S.tolist()
                answer = model.answer(
                    query, do_sample=False, repetition_penalty=1.0, max_new_tokens=max_new_tokens
                )
            same = found["prompt_ids"] == prompt_ids and found["answer_ids"] == list(answer.token_ids)
            answers.append(
                {
                    "image": f"{columns * token_px}x{rows * token_px}",
                    "question": question,
                    "equal": same,
                    "ours": {"ids": list(answer.token_ids), "text": answer.text},
                    "transformers_js": {"ids": found["answer_ids"], "text": found["text"]},
                }
            )
    return answers


def _drawing(width: int, height: int, seed: int) -> Image.Image:
    image = Image.new("RGB", (width, height), (30 * seed, 90, 200 - 40 * seed))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 8, width // 2, height // 2), fill=(250, 40, 40))
    draw.rectangle((width // 2, height // 3, width - 3, height - 2), fill=(20, 220, 80))
    return image


if __name__ == "__main__":
    try:
        typer.run(main)
    except GenrecalError as error:
        errors.print(f"error: {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
