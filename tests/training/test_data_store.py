"""The quadruplet store keeps what was put in, and refuses what contradicts itself."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsiseg.errors import DataError, OutputError
from wsiseg.training.data.store import Quadruplet, QuadrupletStore, Sample, SourceInfo, write_quadruplets

INFO = {"set": SourceInfo("set", "CC0", "nobody", "stated 0.5", "by patient")}


def make_sample(i: int, size: tuple[int, int] = (20, 30), **changes: object) -> Sample:
    rng = np.random.default_rng(i)
    gland = (rng.integers(0, 3, size)).astype(np.uint16)
    layers = {"gland": gland} if i % 2 else {"nucleus": gland * 300}
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    present = tuple(layers)
    sample = Sample(image, layers, present, ("cat",), 0.5, "set", f"p{i}", "train", f"image {i}", "normal")
    return replace(sample, **changes)  # type: ignore[arg-type]


def test_round_trip_with_sizes_mixed_and_more_than_one_shard(tmp_path: Path) -> None:
    samples = [make_sample(i, (20, 30) if i % 3 else (16, 16)) for i in range(200)]
    asked = {"image 7": [Quadruplet(0, "gland", "the\u2028glands?", "Two glands.", True)]}
    write_quadruplets(tmp_path / "a.zarr", samples, INFO, asked)
    store = QuadrupletStore.open(tmp_path / "a.zarr")
    assert len(store) == 200
    assert store.sources == INFO
    assert store.quadruplets == [Quadruplet(7, "gland", "the\u2028glands?", "Two glands.", True)]
    for i, sample in enumerate(samples):
        read = store.sample(i)
        np.testing.assert_array_equal(read.image, sample.image)
        assert read.layers.keys() == sample.layers.keys()
        for key, layer in sample.layers.items():
            np.testing.assert_array_equal(read.layers[key], layer)
        for name in ("present", "absent", "mpp", "source", "group", "split", "name", "label"):
            assert getattr(read, name) == getattr(sample, name)
    assert store.indices(split="val") == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"absent": ("gland",)}, "present and absent"),
        ({"present": ()}, "layers"),
        ({"split": "dev"}, "split"),
        ({"mpp": 900.0}, "absurd"),
        ({"source": "other"}, "licence"),
        ({"layers": {"gland": np.zeros((20, 30), np.uint16)}}, "empty"),
        ({"layers": {"gland": np.ones((9, 9), np.uint16)}}, "uint16"),
    ],
)
def test_contradictions_are_errors_and_leave_nothing(tmp_path: Path, changes: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        write_quadruplets(tmp_path / "a.zarr", [make_sample(1, **changes)], INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["image", "zarr.json", ".", "..", "image/x", "a/../b"])
def test_a_layer_takes_no_name_that_the_store_needs(key: str, tmp_path: Path) -> None:
    sample = make_sample(1, layers={key: np.ones((20, 30), np.uint16)}, present=(key,))
    with pytest.raises(DataError, match=re.escape(f"{key!r}: the store needs that name")):
        write_quadruplets(tmp_path / "a.zarr", [sample], INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [("tumor", "tumor/stroma"), ("tumor/stroma", "tumor")])
def test_a_structure_cannot_lie_within_another(names: tuple[str, str], tmp_path: Path) -> None:
    layers = dict.fromkeys(names, np.ones((20, 30), np.uint16))
    with pytest.raises(DataError, match="cannot be called 'tumor' and 'tumor/stroma' in one store"):
        write_quadruplets(tmp_path / "a.zarr", [make_sample(1, layers=layers, present=names)], INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_patient_is_in_one_split(tmp_path: Path) -> None:
    samples = [make_sample(1, group="p"), make_sample(3, group="p", split="val")]
    with pytest.raises(DataError, match="two splits"):
        write_quadruplets(tmp_path / "a.zarr", samples, INFO)


def test_a_store_is_never_overwritten(tmp_path: Path) -> None:
    write_quadruplets(tmp_path / "a.zarr", [make_sample(1)], INFO)
    with pytest.raises(OutputError, match="something else is there"):
        write_quadruplets(tmp_path / "a.zarr", [make_sample(1)], INFO)


def test_what_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wsiseg data import"):
        QuadrupletStore.open(tmp_path / "none.zarr")
    import zarr

    zarr.open_group(tmp_path / "tiles.zarr", mode="w")
    with pytest.raises(DataError, match="not a quadruplet store"):
        QuadrupletStore.open(tmp_path / "tiles.zarr")
