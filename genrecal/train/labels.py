"""The teacher's own answers as labels (sequence-level distillation), written once, before the first stage.

    RUN/labels-journal/rank-0.jsonl …      {"key", "answer"} as they come; a killed run goes on behind them
    RUN/labels/keys.npy, offsets.npy, answers.bin, manifest.json      all of them, sorted; the manifest last

An answer belongs to what was asked: its key is a digest of the images' names and the turns before it. So rows
may come in any order, and equal questions share an answer. Answers are greedy: the labels are a function of
teacher and data. A sample that the teacher answers with nothing, or with more than `relabel.max_new_tokens`,
keeps its given answer: a student that learned a cut one would learn to stop in the middle (`keep_unended`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from genrecal.core.console import console, progress
from genrecal.core.errors import DataError
from genrecal.core.files import atomic_folder
from genrecal.core.manifest import NAME, verify_manifest, write_manifest
from genrecal.core.types import Sample, Turn
from genrecal.data.inputs import Prompt, answer_form, blank_prompt, join_vision
from genrecal.data.mixture import Mixture
from genrecal.data.order import Part
from genrecal.data.pair import PairReader, open_images, question_prompt
from genrecal.models.families import family_of
from genrecal.models.processors import load_model, load_processor
from genrecal.train.engine import DTYPES, device, engine_config, generating, loading_for
from genrecal.train.preflight import check
from genrecal.train.preflight_samples import Seat, teacher_name
from genrecal.train.settings import RelabelConfig, RunConfig
from genrecal.train.stages import StageConfig

FOLDER = "labels"


def label_key(sample: Sample) -> int:
    """64 bits of what is asked: the images' names and the turns before the answer."""
    asked = [str(image) for image in sample.images] + [turn.text for turn in sample.turns[:-1]]
    return int.from_bytes(hashlib.sha256(json.dumps(asked).encode()).digest()[:8], "little")


class Labels:
    """The labels in a folder, looked up on disk: millions of answers take no memory."""

    def __init__(self, folder: Path) -> None:
        verify_manifest(folder, kind="labels")
        self.folder = folder
        self.keys = np.load(folder / "keys.npy", mmap_mode="r")
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self.text = np.memmap(folder / "answers.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.keys)

    def answer(self, sample: Sample) -> str:
        """The teacher's answer to what `sample` asks; empty where it had none.

        Raises:
            DataError: the labels were made for other data.
        """
        key = np.uint64(label_key(sample))
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise DataError(
                f"has no label for sample '{sample.id}' of {sample.source}",
                where=self.folder,
                fix="The data changed since the teacher answered it: delete this folder",
            )
        return bytes(self.text[self.offsets[place] : self.offsets[place + 1]]).decode()


class Relabelled(Sequence[Sample]):
    """`samples` with the teacher's answers where it has one."""

    def __init__(self, samples: Mixture, labels: Labels) -> None:
        self.samples, self.labels = samples, labels

    @property
    def parts(self) -> tuple[Part, ...]:
        """As of the mixture: which sample comes when does not depend on who answered."""
        return self.samples.parts

    @property
    def lengths(self) -> np.ndarray:
        """As of the mixture, whose own answers they count."""
        return self.samples.lengths

    def token_lengths(self, processors: Sequence[Any]) -> np.ndarray:
        """As of the mixture."""
        return self.samples.token_lengths(processors)

    def place(self, index: int) -> int:
        """As of the mixture."""
        return self.samples.place(index)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        sample = self.samples[index]
        answer = self.labels.answer(sample)
        if not answer:
            return sample
        return replace(sample, turns=(*sample.turns[:-1], Turn(role="assistant", text=answer)))


def teacher_labels(config: RunConfig, samples: Mixture) -> Labels:
    """The labels of the run, generated now where they are not there yet; every rank calls it.

    With several teachers each sample is answered by the first one whose domains hold it; a sample that none
    teaches keeps its given answer.
    """
    folder = config.output / FOLDER
    if not (folder / NAME).is_file():
        journals = config.output / f"{FOLDER}-journal"
        journals.mkdir(parents=True, exist_ok=True)  # rank 0 may not have written to the run folder yet
        for place in range(len(config.sources)):
            _generate(config, samples, place, journals)
        dist.barrier()
        if dist.get_rank() == 0:
            answered = _write(folder, journals)
            console.print(
                f"labels: {answered:,} questions answered by the teacher; the others, with empty or unended"
                " answers, keep the given ones"
            )
        dist.barrier()
    return Labels(folder)


def _generate(config: RunConfig, samples: Mixture, place: int, journals: Path) -> None:
    """This rank's share of one teacher's answers, appended to its journal."""
    source, batch = config.sources[place], config.relabel.batch
    done = {row["key"] for journal in journals.glob("*.jsonl") for row in _rows(journal)}
    dist.barrier()  # every rank has read the journals before one writes
    rank = dist.get_rank()
    _end_last_line(journals / f"rank-{rank}.jsonl")
    mine = [
        index
        for index in range(rank, len(samples), dist.get_world_size())
        if _teacher_of(samples[index], config) == place and label_key(samples[index]) not in done
    ]
    if place == 0:
        _note_untaught(config, samples, journals / f"rank-{rank}.jsonl", done)
    batches = [mine[first : first + batch] for first in range(0, len(mine), batch)]
    most = torch.tensor(len(batches), device=device())
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if not int(most):
        return
    limits = {"max_tiles": config.data.max_tiles, "max_pixels": config.data.max_pixels}
    processor = load_processor(source.path, **limits, code=config.code(source.path))
    engine = config.engine if config.relabel.split else config.engine.model_copy(update={"zero_stage": 1})
    settings = engine_config(engine, config.optimizer, StageConfig(micro_batch=batch, accumulation=1))
    with loading_for(settings):
        model = load_model(source.path, dtype=DTYPES[config.engine.precision], code=config.code(source.path))
    with (
        generating(model, settings) as teacher,
        (journals / f"rank-{rank}.jsonl").open("a", encoding="utf-8") as journal,
        progress(disable=rank != 0) as bar,
    ):
        _check(config, samples, place, teacher, processor)
        task = bar.add_task("labels", total=int(most), note="")
        for number in range(int(most)):
            # Under ZeRO-3 a rank without samples left generates along: weights are gathered from all.
            rows = [samples[index] for index in (batches[number] if number < len(batches) else [0])]
            answers = _answers(
                teacher,
                processor,
                rows,
                config.relabel,
                together=engine.zero_stage == 3,
                skips=config.data.on_bad == "skip",
            )
            if number < len(batches):
                for sample, answer in zip(rows, answers, strict=True):
                    journal.write(json.dumps({"key": label_key(sample), "answer": answer}) + "\n")
                journal.flush()
            bar.update(task, advance=1)


def _check(config: RunConfig, samples: Mixture, place: int, model: Any, processor: Any) -> None:
    """Stop before the first answer if the teacher does not read the samples or their images."""
    reader = PairReader(samples, student=processor, teachers=[], max_tokens=config.data.max_tokens)
    seat = Seat(
        name=teacher_name(place),
        folder=config.sources[place].path,
        model=model,
        processor=processor,
        blank=reader.student_blank,
        domains=config.sources[place].domains,
        teaches=True,
    )
    name = FOLDER if place == 0 else f"{FOLDER}@{place}"
    check([seat], config=config, name=name, reader=reader, mixture=samples)


def _note_untaught(config: RunConfig, samples: Sequence[Sample], journal: Path, done: set[int]) -> None:
    """An empty answer for every sample of this rank that no teacher teaches."""
    with journal.open("a", encoding="utf-8") as stream:
        for index in range(dist.get_rank(), len(samples), dist.get_world_size()):
            sample = samples[index]
            if _teacher_of(sample, config) is None and label_key(sample) not in done:
                stream.write(json.dumps({"key": label_key(sample), "answer": ""}) + "\n")


def _teacher_of(sample: Sample, config: RunConfig) -> int | None:
    serving = (
        place
        for place, source in enumerate(config.sources)
        if source.domains is None or sample.domain in source.domains
    )
    return next(serving, None)


def _prompt(sample: Sample, processor: Any, *, skips: bool) -> Prompt | None:
    """What the teacher is asked; None where it cannot be read: the stage that meets it leaves it out, too."""
    try:
        return question_prompt(sample, processor, open_images(sample))
    except DataError:
        if not skips:
            raise
        return None


def _answers(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    settings: RelabelConfig,
    *,
    together: bool,
    skips: bool = False,
) -> list[str]:
    """Greedy answers, padded on the left so that all begin in the same column; empty where one is not kept.

    With `together` all ranks run the same modules, as they need each other's weights: the vision encoder too,
    and they write on until the last one is done. With `skips`, a sample that cannot be read has no answer.
    """
    blank = blank_prompt(processor)
    found = [_prompt(sample, processor, skips=skips) for sample in samples]
    prompts = [prompt or blank for prompt in found]
    masks = [torch.ones_like(prompt.ids) for prompt in prompts]
    if together and not any(prompt.vision for prompt in prompts):
        place = min(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        masks[place] = torch.cat([torch.zeros_like(blank.ids), masks[place]])
        prompts[place] = _behind(blank, prompts[place])
    tokenizer = processor.tokenizer
    longest = max(len(prompt.ids) for prompt in prompts)

    def pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.stack(
            [torch.nn.functional.pad(row, (longest - len(row), 0), value=value) for row in rows]
        ).to(device())

    ids_BS = pad([prompt.ids for prompt in prompts], tokenizer.pad_token_id)
    extras = {
        name: pad([prompt.token_inputs[name] for prompt in prompts], 0)
        for name in family_of(model.config).token_inputs
    }
    vision = {
        name: value.to(device(), model.dtype) if value.is_floating_point() else value.to(device())
        for name, value in join_vision([prompt.vision for prompt in prompts]).items()
    }
    end_id = answer_form(processor).end_id
    with torch.no_grad():
        written_BN = model.generate(
            input_ids=ids_BS,
            attention_mask=pad(masks, 0),
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=tokenizer.pad_token_id,
            synced_gpus=together and dist.get_world_size() > 1,
            **extras,
            **vision,
        )
    answers_BN = written_BN[:, longest:]
    texts = tokenizer.batch_decode(answers_BN, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    kept_B = ((answers_BN == end_id).any(1) | settings.keep_unended).tolist()
    return [
        text.strip() if kept and prompt else ""
        for text, kept, prompt in zip(texts, kept_B, found, strict=True)
    ]


def _behind(blank: Prompt, prompt: Prompt) -> Prompt:
    """A prompt of text alone behind a blank image, which no mask shows."""
    inputs = {
        name: torch.cat([blank.token_inputs[name], value]) for name, value in prompt.token_inputs.items()
    }
    return Prompt(ids=torch.cat([blank.ids, prompt.ids]), token_inputs=inputs, vision=blank.vision)


def _end_last_line(journal: Path) -> None:
    """A line that a kill cut off stands alone, so that the next one is whole."""
    if journal.is_file() and not journal.read_bytes().endswith(b"\n"):
        with journal.open("a", encoding="utf-8") as stream:
            stream.write("\n")


def _rows(journal: Path) -> list[dict[str, Any]]:
    """The journal's rows; a kill can cut the last one off."""
    rows = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _write(folder: Path, journals: Path) -> int:
    """The journals as one sorted table; returns the number of answers in it."""
    answers = {
        row["key"]: row["answer"] for journal in sorted(journals.glob("*.jsonl")) for row in _rows(journal)
    }
    keys = sorted(answers)
    texts = [answers[key].encode() for key in keys]
    with atomic_folder(folder) as temporary:
        np.save(temporary / "keys.npy", np.array(keys, dtype=np.uint64))
        np.save(temporary / "offsets.npy", np.cumsum([0, *map(len, texts)], dtype=np.int64))
        (temporary / "answers.bin").write_bytes(b"".join(texts) or b"\0")
        write_manifest(temporary, kind="labels", questions=len(keys))
    return sum(map(bool, texts))
