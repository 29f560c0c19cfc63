"""One source: what the user says about it, and its rows as Samples or as what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from genrecal.core.config import Config, load_config, parse_config
from genrecal.core.errors import DataError
from genrecal.core.types import DOMAINS, Sample
from genrecal.data.conversation import RowRules, Turns, samples_of
from genrecal.data.formats import IGNORED, READERS, Format, files_of, named_from, recognise
from genrecal.data.locate import ImageFolder
from genrecal.data.rows import Row, Rows


class SourceConfig(Config):
    """One source of conversations."""

    path: Path
    """A file, a folder, or a pattern of tars or parquet files: train-{000..127}.tar."""
    format: Format | None = None
    """llava, sharegpt, messages, datasets, parquet or webdataset; default: told from the path."""
    images: Path | None = None
    """The folder that image paths start from; default: the folder of `path`."""
    domain: str | None = None
    """Domain of the rows that name none: general_vqa, knowledge, science_math or chart_document."""
    weight: float = Field(default=1.0, gt=0)
    """How often an epoch has each sample: 2 is twice, 0.5 half of them, another half in the next epoch."""
    turns: Turns = "last"
    """last: a conversation's last answer is learned; each: every answer, with what was before as context."""
    exclude_ids: Path | None = None
    """JSON file with ids to leave out, as `genrecal data check --exclude` writes it."""

    @field_validator("domain")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return check_domain(value)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def image_root(self) -> Path:
        """Where image paths start: beside the file, in the folder, or beside what the pattern matches."""
        if self.images is not None:
            return self.images
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def start(self) -> Path:
        """The folder that rows without an id are named from: the same names wherever the data lie."""
        return named_from(self.path, self.format or recognise(self.path))

    def resolved(self) -> tuple[Format, tuple[Path, ...]]:
        """The format and the files.

        Raises:
            DataError: there are none, or they can be read in more than one way.
        """
        kind = self.format or recognise(self.path)
        return kind, files_of(self.path, kind)


class MixtureConfig(Config):
    """Several sources, and what is left out of them."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """What is mixed."""
    exclude_domains: tuple[str, ...] = ()
    """Domains that no stage sees (the paper's Figure 10 leaves out one of three)."""
    exclude_ids: Path | None = None
    """JSON file with ids to leave out of every source."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What a row or sample that cannot be used does: stop the run, or be left out and written down."""
    max_bad: int = Field(default=100, ge=0)
    """With `skip`: so many rows and samples, over all sources, are left out; more stop the run after all."""
    buckets: int = Field(default=0, ge=0)
    """So many global batches are sorted by length together, so that a micro-batch pads little; 0: none.
    With 1 every step reads what it would read without it."""
    cache: Path | None = None
    """Where sources lie as Arrow tables; default: data-cache beside the run folder."""

    @field_validator("exclude_domains")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for domain in value:
            check_domain(domain)
        return value


def named_sources(paths: Sequence[Path], *, images: Path | None = None) -> MixtureConfig:
    """What a command line names: data of any format, or YAML configs for their `data`.

    Rows of plain data that name no domain count as general_vqa.

    Raises:
        ConfigError: a config without `data`, or with sources that are none.
    """
    sources: list[SourceConfig] = []
    config = None
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            config = load_config(path, _Run).data
            sources += config.sources
        else:
            sources.append(SourceConfig(path=path, images=images, domain="general_vqa"))
    if config is None:
        return MixtureConfig(sources=tuple(sources))
    return config.model_copy(update={"sources": tuple(sources)})


def described_sources(data: Mapping[str, Any]) -> MixtureConfig:
    """The mixture in a run's description of its data, as its manifest keeps it.

    Raises:
        ConfigError: it is none.
    """
    return parse_config(dict(data), _Data, where="the run's data")


class _Data(MixtureConfig):
    """A run's `data` also says how long a sample may be, and more that is not about what is mixed."""

    model_config = ConfigDict(extra="ignore")


class _Run(Config):
    model_config = ConfigDict(extra="ignore")

    data: _Data


def check_domain(domain: str | None) -> str | None:
    """`domain`, if it is one or None; a ValueError otherwise, for pydantic."""
    if domain is not None and domain not in DOMAINS:
        raise ValueError(f"unknown domain '{domain}'; known are {', '.join(DOMAINS)}")
    return domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One row, understood: its samples, or the error that says why there are none."""

    row: Row
    samples: tuple[Sample, ...] = ()
    error: DataError | None = None

    def facts(self, source: str) -> dict[str, Any]:
        """What a journal says about a bad row."""
        content = self.row.content
        name = content.get("id") if isinstance(content, dict) else None
        error = self.error
        return {
            "source": source,
            "row": self.row.number,
            "id": name if isinstance(name, str | int) else None,
            "where": str(error.where) if error else None,
            "what": error.what if error else None,
            "fix": error.fix if error else None,
        }


def source_rows(source: SourceConfig) -> Rows:
    """The rows as they lie on disk.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    kind, files = source.resolved()
    rows = READERS[kind](files)
    ignored = IGNORED.get(source.format or "", ())
    return Rows(total=rows.total, read=lambda: (_without(row, ignored) for row in rows)) if ignored else rows


def read_source(source: SourceConfig, rows: Rows) -> Iterator[Reading]:
    """Every row of `source` as a Reading; an image file that is not there makes its row a bad one.

    Raises:
        DataError: the source breaks off, or has no row at all.
    """
    folder = ImageFolder(source.image_root)
    rules = RowRules(
        source=source.name,
        start=source.start,
        folder=folder,
        domain=source.domain,
        turns=source.turns,
    )
    row = None
    for row in rows:
        try:
            if isinstance(row.content, DataError):
                raise row.content
            samples = samples_of(row, rules)
            for image in samples[-1].images:
                if isinstance(image, Path) and not folder.holds(image):
                    fix = f"Sample '{samples[0].id}' of {source.name} names it"
                    what = "is no regular file" if image.exists() else "no such image"
                    raise DataError(what, where=image, fix=fix)
        except DataError as error:
            yield Reading(row=row, error=error)
        else:
            yield Reading(row=row, samples=samples)
    if row is None:
        raise DataError("holds no rows", where=source.path)


def _without(row: Row, columns: tuple[str, ...]) -> Row:
    if not isinstance(row.content, dict):
        return row
    content = {name: value for name, value in row.content.items() if name not in columns}
    return replace(row, content=content)
