"""How many cells are outlined one by one, with the cuts at necks (`wsiseg segment --separate`) and without.

    python -m benchmarks.quality.touching STORE.zarr --split test --source monuseg --concept nucleus \
        --query "outline the nuclei"

The images are asked as a user's are. An outline hits a cell of the truth where their intersection is more than half
of their union, so that at most one hits; F1 is of these. AJI is Kumar et al. 2017 (doi:10.1109/TMI.2017.2677499).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

import wsiseg
from benchmarks.quality.structure import parser_for, samples_with
from wsiseg.inference import Segmenter
from wsiseg.mask.raster import paint
from wsiseg.training.data.store import QuadrupletStore, Sample


@dataclass(frozen=True)
class Tally:
    """Of one image: outlines drawn, cells there, hits among both; pixels of AJI's intersections and unions."""

    drawn: int
    there: int
    hits: int
    intersection_px: int
    union_px: int


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--query", required=True)
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    store = QuadrupletStore.open(arguments.store)
    model = wsiseg.load_model(arguments.model, device="cpu")
    both = [
        [tally(outlines, sample.layers[arguments.concept]) for outlines in _outlines(sample, arguments.query, model)]
        for sample in samples_with(store, arguments.source, arguments.split, arguments.concept, arguments.images)
    ]
    for how, tallies in zip(("as drawn", "cut at necks"), zip(*both, strict=True), strict=True):
        print(f"{how:>12}: {figures(tallies)}")


def _outlines(sample: Sample, query: str, model: Segmenter) -> Iterator[list[shapely.Geometry]]:
    """As drawn, and cut at necks; the model is asked once, and its answers kept in `work`."""
    with tempfile.TemporaryDirectory() as folder:
        path, work = Path(folder, "image.png"), Path(folder, "work")
        Image.fromarray(sample.image).save(path)
        for separate in (False, True):
            result = wsiseg.segment(path, query, model=model, slide_mpp=sample.mpp, separate=separate, work=work)
            yield [annotation.geometry for annotation in result.annotations]


def tally(outlines: Sequence[shapely.Geometry], truth: np.ndarray) -> Tally:
    """Outlines in pixels against truth (H, W), a number for each cell, 0 where none is."""
    there_px = np.bincount(truth.ravel())
    cells = np.flatnonzero(there_px[1:]) + 1
    best_iou = np.zeros(len(there_px))
    best = np.full(len(there_px), -1)
    shared_px = np.zeros(len(there_px), np.int64)
    drawn_px = np.zeros(len(outlines), np.int64)
    for k, outline in enumerate(outlines):
        left, top, right, bottom = np.clip(
            [*np.floor(outline.bounds[:2]), *np.ceil(outline.bounds[2:])], 0, 2 * truth.shape[::-1]
        ).astype(int)
        mask = np.zeros((bottom - top, right - left), bool)
        paint(np.array([outline]), np.array([True]), mask, left, top)
        drawn_px[k] = mask.sum()
        shared = np.bincount(truth[top:bottom, left:right][mask], minlength=len(there_px))
        iou = shared / (there_px + drawn_px[k] - shared)
        iou[0] = 0
        better = iou > best_iou
        best_iou[better], best[better], shared_px[better] = iou[better], k, shared[better]
    met = cells[best[cells] >= 0]
    unions = there_px[cells].sum() + (drawn_px[best[met]] - shared_px[met]).sum()
    in_vain = np.setdiff1d(np.arange(len(outlines)), best[met])
    return Tally(
        drawn=len(outlines),
        there=len(cells),
        hits=int((best_iou[cells] > 0.5).sum()),
        intersection_px=int(shared_px[met].sum()),
        union_px=int(unions + drawn_px[in_vain].sum()),
    )


def figures(tallies: Sequence[Tally]) -> str:
    """The counts and F1 over all images; the error of the count and AJI as means over images."""
    drawn, there, hits = (sum(getattr(t, name) for t in tallies) for name in ("drawn", "there", "hits"))
    error = np.mean([abs(t.drawn - t.there) / t.there for t in tallies])
    aji = np.mean([t.intersection_px / t.union_px for t in tallies])
    return (
        f"{drawn} outlines of {there} cells in {len(tallies)} images, off by {error:.2f} in the mean image; "
        f"F1 {2 * hits / (drawn + there):.3f}, AJI {aji:.3f}"
    )


if __name__ == "__main__":
    main()
