"""An edge build on this machine, answered by the torch-free runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.subjects.settings import fingerprint_of, folder_of, overrides_of, seed_of
from bench.types import Answer, Facts, Query, SubjectSpec
from genrecal.core.files import read_json

if TYPE_CHECKING:
    from edge.model import EdgeModel


class BuildSubject:
    """A build folder, asked one query at a time."""

    chunk = lanes = 1

    def __init__(self, spec: SubjectSpec) -> None:
        from edge.device import require_device
        from edge.model import EdgeModel

        require_device(spec.device)
        self.spec = spec
        self.model: EdgeModel = EdgeModel.open(
            folder_of(spec),
            device=spec.device,
            threads=spec.threads,
            manifest_sha256=spec.manifest_sha256,
            trusted_keys=[Path(key) for key in spec.trusted_keys],
        )
        facts = self.model.build.manifest
        generation = dict(read_json(folder_of(spec) / "generation_config.json"))
        generation.pop("transformers_version", None)
        self._overrides = overrides_of(spec, generation.get("max_new_tokens"))
        generation |= self._overrides
        self.facts = Facts(
            kind="build",
            weights_bytes=sum(
                entry["bytes"] for name, entry in facts["files"].items() if name.startswith("onnx/")
            ),
            precision=facts["precision"],
            device=spec.device,
            generation=generation,
        )
        self.fingerprint = fingerprint_of(spec, facts["files"], generation)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        answers = []
        for query in queries:
            started = time.perf_counter()
            reply = self.model.answer(query.parts, seed=seed_of(self.spec.seed, [query]), **self._overrides)
            answers.append(
                Answer(
                    text=reply.text.strip(),
                    tokens=len(reply.token_ids),
                    prompt_tokens=reply.prompt_tokens,
                    first_token_s=reply.first_token_s,
                    total_s=time.perf_counter() - started,
                )
            )
        return answers

    def forget(self) -> None:
        self.model.forget()
