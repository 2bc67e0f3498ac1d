"""The quadruplet store: image, mask, query, reasoning chain, in one Zarr v3 group.

    store.zarr/                 attributes: format, version, sources (licence, attribution, scale, …)
      224x224/image             (N, 224, 224, 3) uint8, one chunk per image, sharded
      224x224/<concept>         (N, 224, 224) uint16: instance labels, or 0/1
      512x512/…                 images of one size share a group
      samples, quadruplets      uint8: JSON lines in UTF-8
      chains.jsonl              what `wsiseg data annotate` wrote, if it did: see `chains`

A sample's layers are what is known to be there; `absent` what is known not to be. Everything else is unknown.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from wsiseg.errors import DataError
from wsiseg.files import atomic_folder
from wsiseg.training.data.chains import Chain, Key, read_chains, write_chains

FORMAT = "wsiseg-quadruplets"
VERSION = 1
SPLITS = ("train", "val", "test")
_SHARD = 64  # images per file
_OWN_NAMES = {"image", "zarr.json", ".", ".."}  # in the group of a size, where layers have the names of concepts


@dataclass(frozen=True)
class SourceInfo:
    """Where images come from, and what one may do with them."""

    name: str
    licence: str
    attribution: str
    mpp: str  # the scale and how it is known
    split: str  # what separates training from validation
    research_only: bool = False
    notes: str = ""
    tests_trained_patients: bool = False  # the official test images are of patients who are in training, too


@dataclass(frozen=True)
class Sample:
    """One image with all that is known about it."""

    image: np.ndarray  # (H, W, 3) uint8
    layers: dict[str, np.ndarray]  # concept -> (H, W) uint16, instance labels or 0/1, each with a pixel > 0
    present: tuple[str, ...]
    absent: tuple[str, ...]
    mpp: float | None
    source: str
    group: str  # patient, organ or field: never in two splits
    split: str
    name: str
    label: str = ""  # class, grade or organ as the source states it


@dataclass(frozen=True)
class Record:
    """A sample without its pixels."""

    name: str
    source: str
    label: str
    group: str
    split: str
    mpp: float | None
    present: tuple[str, ...]
    absent: tuple[str, ...]
    size: tuple[int, int]  # (height, width)
    row: int  # in the arrays of that size


@dataclass(frozen=True)
class Quadruplet:
    """One question about one image: `image` is the index of the sample; the mask is its layer `concept`.

    `reasoning` is the template's, as the store was made with it; see `QuadrupletStore.reasoning`.
    """

    image: int
    concept: str
    query: str
    reasoning: str
    present: bool


@dataclass
class QuadrupletStore:
    """A store opened for reading; see `open`."""

    path: Path
    sources: dict[str, SourceInfo]
    records: list[Record]
    quadruplets: list[Quadruplet]
    chains: dict[Key, Chain]
    _group: zarr.Group = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> QuadrupletStore:
        """Open the store at `path`.

        Raises:
            DataError: there is no store, or it is of another version, or incomplete.
        """
        try:
            group = zarr.open_group(path, mode="r")
        except (FileNotFoundError, ValueError, KeyError) as error:
            if not Path(path).exists():
                raise DataError(f"there is no {path} in {Path.cwd()}; wsiseg data import makes a store") from error
            raise DataError(f"{path} is not a quadruplet store; make one with: wsiseg data import") from error
        about: dict[str, Any] = dict(group.attrs)
        if about.get("format") != FORMAT:
            raise DataError(
                f"{path} is a Zarr group but not a quadruplet store (format {about.get('format')!r})"
            )
        if about.get("version") != VERSION:
            raise DataError(
                f"{path} has version {about.get('version')}, this software reads {VERSION}; import again"
            )
        try:
            records = [
                Record(
                    **{
                        **row,
                        "present": tuple(row["present"]),
                        "absent": tuple(row["absent"]),
                        "size": (row["size"][0], row["size"][1]),
                    }
                )
                for row in _read_lines(group, "samples")
            ]
            quadruplets = [Quadruplet(**row) for row in _read_lines(group, "quadruplets")]
            sources = {name: SourceInfo(**info) for name, info in about["sources"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is incomplete or damaged ({error}); import it again") from error
        return cls(Path(path), sources, records, quadruplets, read_chains(path), group)

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, i: int) -> Sample:
        """Sample `i`, its pixels read from disk.

        Raises:
            IndexError: there is no such sample.
            DataError: its arrays are missing or damaged.
        """
        record = self.records[i]
        folder = _folder(record.size)
        try:
            image = self._read(f"{folder}/image", record.row)
            layers = {key: self._read(f"{folder}/{key}", record.row) for key in record.present}
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise DataError(f"{self.path}: cannot read sample {i} ({record.name}): {error}") from error
        return Sample(
            image,
            layers,
            record.present,
            record.absent,
            record.mpp,
            record.source,
            record.group,
            record.split,
            record.name,
            record.label,
        )

    def reasoning(self, question: Quadruplet) -> str:
        """The chain that answers `question`: what `wsiseg data annotate` wrote, where it did, else its own."""
        chain = self.chains.get((self.records[question.image].name, question.concept))
        return chain.text if chain and chain.text and chain.present == question.present else question.reasoning

    def questions(self, split: str | None = None, limit: int | None = None) -> list[Quadruplet]:
        """The questions of a split (None: all), with the chains that answer them; or `limit` of them, spread evenly.

        Raises:
            DataError: there is none.
        """
        found = [q for q in self.quadruplets if split in (None, self.records[q.image].split)]
        if not found:
            have = ", ".join(sorted({self.records[q.image].split for q in self.quadruplets})) or "none"
            of_split = "" if split is None else f" of the split {split!r}"
            raise DataError(f"{self.path} holds no questions{of_split}; it has: {have}")
        if limit is not None and limit < len(found):
            found = [found[i] for i in np.linspace(0, len(found) - 1, limit).round().astype(int)]
        return [replace(q, reasoning=self.reasoning(q)) for q in found]

    def indices(self, *, split: str | None = None, source: str | None = None) -> list[int]:
        """Indices of the samples of a split and of a source; None = any."""
        return [
            i
            for i, record in enumerate(self.records)
            if split in (None, record.split) and source in (None, record.source)
        ]

    def _read(self, name: str, row: int) -> np.ndarray:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise KeyError(name)
        return np.asarray(array[row])


def write_quadruplets(
    path: str | os.PathLike[str],
    samples: Iterable[Sample],
    sources: Mapping[str, SourceInfo],
    quadruplets: Mapping[str, Iterable[Quadruplet]] | None = None,
    chains: Iterable[Chain] = (),
) -> QuadrupletStore:
    """Write a store, as a stream; it is there when it is whole.

    Args:
        samples: each checked: see `check`.
        sources: by name, one for every source of the samples.
        quadruplets: fixed questions by sample name; their `image` is set here.
        chains: those of an annotated store; of images that are not among the samples, none is kept.

    Raises:
        DataError: a sample breaks the rules, there is none, or a group is in two splits (of training and test only
            where its source is known for that).
        OutputError: `path` exists or cannot be written.
    """
    with atomic_folder(path, replaces=lambda _: False) as folder:
        _write(folder, samples, sources, {} if quadruplets is None else quadruplets, chains)
    return QuadrupletStore.open(path)


def check(sample: Sample) -> None:
    """Raise DataError unless shapes, types, split, names of layers and the present/absent lists are right."""
    where = f"sample {sample.name!r} of {sample.source}"
    if sample.image.ndim != 3 or sample.image.shape[2] != 3 or sample.image.dtype != np.uint8:
        raise DataError(
            f"{where}: the image must be (H, W, 3) uint8, not {sample.image.shape} {sample.image.dtype}"
        )
    if sample.split not in SPLITS:
        raise DataError(f"{where}: split {sample.split!r} is none of {', '.join(SPLITS)}")
    if set(sample.present) != set(sample.layers):
        raise DataError(f"{where}: present {sample.present} but layers {tuple(sample.layers)}")
    both = set(sample.present) & set(sample.absent)
    if both:
        raise DataError(f"{where}: {', '.join(sorted(both))} cannot be present and absent")
    for key, layer in sample.layers.items():
        if layer.shape != sample.image.shape[:2] or layer.dtype != np.uint16:
            raise DataError(
                f"{where}: layer {key} is {layer.shape} {layer.dtype}, not {sample.image.shape[:2]} uint16"
            )
        if not _OWN_NAMES.isdisjoint(key.split("/")):
            raise DataError(f"{where}: no structure can be called {key!r}: the store needs that name; choose another")
        if not layer.any():
            raise DataError(f"{where}: layer {key} is empty, so it is absent or unknown, not present")
    if sample.mpp is not None and not 0.05 <= sample.mpp <= 50:
        raise DataError(f"{where}: {sample.mpp} µm per pixel is absurd; give it with --mpp")


class _SizeWriter:
    """Arrays of one image size, filled shard by shard."""

    def __init__(self, group: zarr.Group, size: tuple[int, int]) -> None:
        self._group, self._size = group.create_group(_folder(size)), size
        self._waiting: list[Sample] = []
        self._written = 0
        self._names: set[str] = set()

    def add(self, sample: Sample) -> int:
        row = self._written + len(self._waiting)
        self._waiting.append(sample)
        if len(self._waiting) == _SHARD:
            self.flush()
        return row

    def flush(self) -> None:
        first, last = self._written, self._written + len(self._waiting)
        self._array("image", "uint8", (3,), last)[first:last] = np.stack([s.image for s in self._waiting])
        nothing = np.zeros(self._size, np.uint16)
        for key in sorted({key for sample in self._waiting for key in sample.layers}):
            block = np.stack([sample.layers.get(key, nothing) for sample in self._waiting])
            self._array(key, "uint16", (), last)[first:last] = block
        self._written, self._waiting = last, []

    def close(self) -> None:
        if self._waiting:
            self.flush()
        for name in self._names:  # layers that the last images lack
            self._array(name, "", (), self._written)

    def _array(self, name: str, dtype: str, channels: tuple[int, ...], length: int) -> zarr.Array:
        shape = (length, *self._size, *channels)
        if name not in self._names:
            for other in self._names:
                if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
                    raise DataError(f"structures cannot be called {other!r} and {name!r} in one store: rename one")
            self._names.add(name)
            self._group.create_array(
                name,
                shape=shape,
                dtype=dtype,
                fill_value=0,
                chunks=(1, *shape[1:]),
                shards=(_SHARD, *shape[1:]),
            )
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise DataError(f"{name} is not an array")
        if array.shape[0] < length:
            array.resize((length, *array.shape[1:]))
        return array


def _write(
    path: Path,
    samples: Iterable[Sample],
    sources: Mapping[str, SourceInfo],
    quadruplets: Mapping[str, Iterable[Quadruplet]],
    chains: Iterable[Chain],
) -> None:
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    writers: dict[tuple[int, int], _SizeWriter] = {}
    records: list[Record] = []
    split_of: dict[tuple[str, str], str] = {}
    for sample in samples:
        check(sample)
        if sample.source not in sources:
            raise DataError(f"sample {sample.name!r}: no licence is given for its source {sample.source!r}")
        official = sample.split == "test" and sources[sample.source].tests_trained_patients
        if not official and split_of.setdefault((sample.source, sample.group), sample.split) != sample.split:
            raise DataError(
                f"{sample.source}: group {sample.group!r} is in two splits; a patient must be in one"
            )
        size = (sample.image.shape[0], sample.image.shape[1])
        if size not in writers:
            writers[size] = _SizeWriter(group, size)
        row = writers[size].add(sample)
        records.append(
            Record(
                sample.name,
                sample.source,
                sample.label,
                sample.group,
                sample.split,
                sample.mpp,
                tuple(sample.present),
                tuple(sample.absent),
                size,
                row,
            )
        )
    if not records:
        raise DataError("there is no sample to write; check the folder")
    for writer in writers.values():
        writer.close()
    index = {record.name: i for i, record in enumerate(records)}
    if len(index) != len(records):
        [(name, _)] = Counter(record.name for record in records).most_common(1)
        raise DataError(f"two images are called {name}: rename one, or take it out")
    rows = [
        {**asdict(quadruplet), "image": i}
        for name, i in index.items()
        for quadruplet in quadruplets.get(name, ())
    ]
    _write_lines(group, "samples", [asdict(record) for record in records])
    _write_lines(group, "quadruplets", rows)
    if kept := [chain for chain in chains if chain.image in index]:
        write_chains(path, kept)
    used = {record.source for record in records}
    group.attrs.update(
        {
            "format": FORMAT,
            "version": VERSION,
            "sources": {name: asdict(info) for name, info in sources.items() if name in used},
        }
    )


def _folder(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _write_lines(group: zarr.Group, name: str, rows: list[dict[str, Any]]) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    data = np.frombuffer(text.encode(), np.uint8)
    array = group.create_array(name, shape=data.shape, dtype="uint8", chunks=(max(1, len(data)),))
    array[:] = data


def _read_lines(group: zarr.Group, name: str) -> list[dict[str, Any]]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise KeyError(name)
    text = np.asarray(array[:]).tobytes().decode()
    return [json.loads(line) for line in text.split("\n") if line]  # texts may hold other ends of lines
