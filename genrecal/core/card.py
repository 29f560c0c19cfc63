"""The README.md of a student and of a build, as model hubs and people read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from genrecal.core.files import write_text
from genrecal.core.licence import UNKNOWN, strictest

NAME = "README.md"
# What a hub takes as a base model; a path of this machine means nothing to it.
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def write_student_card(folder: Path, provenance: dict[str, Any]) -> Path:
    """Write the card of a student folder.

    Args:
        folder: the student.
        provenance: as far as known, run, method, stage, teacher, base_student, data, licences of the
            parents, scores and versions.
    """
    body = f"""# {_title(provenance)}

{_origin(provenance)}

## Load it

```python
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

model = AutoModelForImageTextToText.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
image_processor = AutoImageProcessor.from_pretrained("PATH", use_fast=False)
```

It needs no genrecal. `AutoProcessor` joins the last two where torchvision is installed.
`genrecal export` makes an edge build of it that needs no torch.

{_scores(provenance)}{_licence(provenance)}{_provenance(provenance)}
"""
    return _write(folder, {**_front(provenance), "library_name": "transformers"}, body)


def write_build_card(
    folder: Path,
    *,
    provenance: dict[str, Any],
    precision: str,
    weights_bytes: int,
    quantization: dict[str, Any],
) -> Path:
    """Write the card of a build folder.

    Args:
        folder: the build.
        provenance: what its manifest says of the student.
        precision: as its manifest names it.
        weights_bytes: of the three graphs' initializers together.
        quantization: what its manifest says that the precision means.
    """
    meaning = yaml.safe_dump(quantization, sort_keys=False, allow_unicode=True, width=100).rstrip()
    body = f"""# {_title(provenance)}, {precision} edge build

{_origin(provenance)} Exported to ONNX; its weights take {weights_bytes / 1e6:.1f} MB.

## Run it

```bash
pip install "genrecal[edge]"        # onnxruntime, tokenizers, pillow, jinja2, numpy; no torch
genrecal ask PATH image.jpg "What is in the picture?"
```

## Precision

```yaml
{meaning}
```

`parity.json` compares this build with the torch checkpoint; `manifest.json` has the SHA-256 of every file.

{_scores(provenance)}{_licence(provenance)}{_provenance(provenance)}
"""
    return _write(folder, {**_front(provenance), "library_name": "onnx"}, body)


def _front(provenance: dict[str, Any]) -> dict[str, Any]:
    models = [provenance.get("base_student"), provenance.get("teacher")]
    known = [str(model) for model in models if model and HUB_NAME.fullmatch(str(model))]
    tags = ["genrecal"] + (["distillation"] if provenance.get("teacher") else [])
    front: dict[str, Any] = {"base_model": known} if known else {}
    if "licences" in provenance and (licence := strictest(provenance["licences"])).name != UNKNOWN:
        front["license"] = licence.name
    return front | {"pipeline_tag": "image-text-to-text", "tags": tags}


def _title(provenance: dict[str, Any]) -> str:
    return str(provenance.get("run") or provenance.get("student") or "Student")


def _origin(provenance: dict[str, Any]) -> str:
    """One sentence on where the model comes from, with what is known."""
    student, teacher = provenance.get("base_student"), provenance.get("teacher")
    method = provenance.get("method")
    if student and teacher:
        return f"A vision-language model: `{student}` taught by `{teacher}` (method `{method}`)."
    if student:
        return f"A vision-language model: `{student}`, trained further (method `{method}`)."
    return "A vision-language model."


def _licence(provenance: dict[str, Any]) -> str:
    if "licences" not in provenance:
        return ""
    found = strictest(provenance["licences"])
    return f"## Licence\n\n`{found.name}`. {found.warning}\n\n"


def _scores(provenance: dict[str, Any]) -> str:
    """A table of the checkpoint's scores; those of a build are its own bench's matter."""
    if not provenance.get("scores"):
        return ""
    rows = "\n".join(
        f"| {title} | {100 * entry['score']:.1f} | {100 * entry['interval_95'][0]:.1f} to "
        f"{100 * entry['interval_95'][1]:.1f} | {entry['questions']} |"
        for title, entry in provenance["scores"].items()
    )
    head = "| benchmark | score | 95% interval | questions |\n|---|---|---|---|"
    return f"## Scores of the checkpoint\n\n{head}\n{rows}\n\n"


def _provenance(provenance: dict[str, Any]) -> str:
    shown = {key: value for key, value in provenance.items() if value is not None}
    return (
        f"## Provenance\n\n```yaml\n{yaml.safe_dump(shown, sort_keys=True, allow_unicode=True).rstrip()}\n```"
    )


def _write(folder: Path, front: dict[str, Any], body: str) -> Path:
    head = yaml.safe_dump(front, sort_keys=True, allow_unicode=True)
    write_text(folder / NAME, f"---\n{head}---\n\n{body}")
    return folder / NAME
