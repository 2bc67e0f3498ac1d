"""From folders to stores, with questions: a known set, all open sets, or any folder of images and masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsiseg.errors import DataError
from wsiseg.training.data.annotate import describe, refuse
from wsiseg.training.data.annotated import INDEX, read_export, samples_of
from wsiseg.training.data.chance import rng_of, split_of
from wsiseg.training.data.concepts import concept_named, concept_of
from wsiseg.training.data.importers import IMPORTERS, SUFFIXES, find_file, make_sample, read_image, read_labels
from wsiseg.training.data.published import PUBLISHED
from wsiseg.training.data.queries import sample_query
from wsiseg.training.data.sources import OPEN_SETS, SOURCES
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample, SourceInfo, write_quadruplets


def import_set(name: str, folder: str | Path, out: str | Path) -> QuadrupletStore:
    """Import one known set: as it is downloaded (`PUBLISHED`), or with an `index.csv`, `images/` and `masks/`.

    Raises:
        DataError: the set is unknown, or the folder is not laid out like it.
        OutputError: `out` exists or cannot be written.
    """
    known = IMPORTERS if (Path(folder) / INDEX).exists() else IMPORTERS | PUBLISHED
    if name not in known:
        where = f" for a folder with {INDEX}" if len(known) < len(IMPORTERS | PUBLISHED) else ""
        raise DataError(f"no importer called {name!r}{where}; known: {', '.join(sorted(known))}, folder, qupath")
    return _write_with_questions(out, known[name](Path(folder)), {name: SOURCES[name]})


def import_open(folder: str | Path, out: str | Path) -> QuadrupletStore:
    """All sets below `folder` (shared/data/open) that may train bundled weights, in one store."""
    root = Path(folder)
    found = [name for name in OPEN_SETS if (root / name).is_dir()]
    if not found:
        raise DataError(f"{root} holds none of the open sets: {', '.join(OPEN_SETS)}")
    samples = (sample for name in found for sample in IMPORTERS[name](root / name))
    return _write_with_questions(out, samples, {name: SOURCES[name] for name in found})


def import_folder(folder: str | Path, out: str | Path, *, label: str, mpp: float) -> QuadrupletStore:
    """Any folder of `images/` and `masks/` (same file stems) of one structure.

    Args:
        label: key or any name of a concept, as "gland" or "cell nuclei".
        mpp: microns per pixel of the images.

    What stands before the first `__` of a file's name is its patient (without one, every image stands for itself);
    one patient in five, by a hash of the name, is for validation. The organ is not stated, so only things that no
    slide holds are asked as absent, and the structure itself where a mask is empty.

    Raises:
        DataError: no images, a mask is missing or of another size, or the label is unknown.
    """
    root, key = Path(folder), concept_named(label)
    pictures = sorted(
        path
        for path in (root / "images").glob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")  # "._x" are of macOS
    )
    if not pictures:
        raise DataError(f"{root / 'images'} holds no image ({', '.join(SUFFIXES)})")
    source = root.resolve().name

    def samples() -> Iterator[Sample]:
        for path in pictures:
            image = read_image(path)
            mask = read_labels(find_file(root / "masks", path.stem), image.shape)
            patient = path.stem.partition("__")[0]
            yield make_sample(
                image,
                {key: mask},
                source=source,
                label="",
                group=patient,
                split=split_of(patient),
                name=path.stem,
                mpp=mpp,
            )

    info = SourceInfo(source, "not stated", str(root), f"stated {mpp}", "by patient, as the names say")
    return _write_with_questions(out, samples(), {source: info})


def import_qupath(folder: str | Path, out: str | Path, *, mpp: float) -> QuadrupletStore:
    """The annotations of a QuPath project, as docs/qupath/export.groovy writes them, or in GeoJSON files that lie
    beside their slides, cut out at `mpp`.

    Raises:
        DataError: no index, or one that names what is not there; no annotation has a class; a slide has no scale.
        SlideError: a slide cannot be read.
    """
    root = Path(folder)
    source = root.resolve().name
    info = SourceInfo(source, "not stated", str(root), f"slides, read at {mpp}", "by patient")
    return _write_with_questions(out, samples_of(read_export(root), mpp, source), {source: info})


def questions(sample: Sample) -> list[Quadruplet]:
    """Fixed questions about a sample: each present structure once, and about as many that are absent.

    The name of the sample is the only seed. Validation and test samples get the wordings held back.
    """
    rng = rng_of(sample.name)
    wording = "train" if sample.split == "train" else "val"
    asked = [
        Quadruplet(
            0, key, sample_query(key, rng, wording), describe(sample.image, layer, key, sample.mpp, rng), True
        )
        for key, layer in sample.layers.items()
    ]
    for _ in range(max(1, len(asked)) if sample.absent else 0):
        key = draw_absent(sample.absent, rng)
        reasoning = refuse(sample.image, key, rng)
        asked.append(Quadruplet(0, key, sample_query(key, rng, wording), reasoning, False))
    return asked


def draw_absent(absent: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of `absent`: with masks elsewhere (the hard ones) 40 %, other structures 40 %, things 20 %."""
    hard = [key for key in absent if concept_of(key).has_masks]
    tissue = [key for key in absent if not concept_of(key).has_masks and not concept_of(key).thing]
    things = [key for key in absent if concept_of(key).thing]
    kinds = [(kind, weight) for kind, weight in ((hard, 0.4), (tissue, 0.4), (things, 0.2)) if kind]
    weights = np.array([weight for _, weight in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))][0]
    return kind[int(rng.integers(len(kind)))]


def _write_with_questions(
    out: str | Path, samples: Iterator[Sample], sources: dict[str, SourceInfo]
) -> QuadrupletStore:
    asked: dict[str, list[Quadruplet]] = {}

    def noted() -> Iterator[Sample]:
        for sample in samples:
            asked[sample.name] = questions(sample)
            yield sample

    return write_quadruplets(out, noted(), sources, asked)
