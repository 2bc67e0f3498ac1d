"""Measure every part of the road beside its peer, and print one table.

    python -m benchmarks.speed.run                        # all parts, a slide of 10,000 x 10,000 px
    python -m benchmarks.speed.run --part read --size 20000

A part is a module of this folder with `measure(setup: Setup) -> list[Row]`. Each way runs in a process of its
own; figures are CPU seconds, the minimum of `--repeat` runs, so that other load disturbs them little. Ratios
hold from machine to machine, absolute figures do not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.speed.make_pyramid import lay_out, tissue_images, write_pyramid
from benchmarks.speed.rows import Setup, as_table

PARTS = ("read", "store", "stitch", "trace", "write", "road", "model")
SAMPLE = Path(__file__).parents[2] / "tests" / "data" / "CMU-1-Small-Region.svs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one (may be repeated)")
    parser.add_argument("--size", type=int, default=10000, help="side of the synthetic slide in pixels")
    parser.add_argument("--images", type=Path, default=SAMPLE, help="tissue to lay out: a folder or a slide")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # spin-waiting BLAS threads are no work
    with tempfile.TemporaryDirectory(prefix="wsiseg-speed-") as folder:
        slide = Path(folder) / "slide.tif"
        write_pyramid(slide, lay_out(tissue_images(arguments.images), arguments.size), mpp=0.5)
        setup = Setup(slide, Path(folder), arguments.repeat)
        rows = []
        for part in arguments.part or [p for p in PARTS if find_spec(f"benchmarks.speed.{p}")]:
            rows += import_module(f"benchmarks.speed.{part}").measure(setup)
    table = as_table(rows)
    print(table)
    if arguments.out:
        arguments.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
