"""What a folder, a manifest and a SLURM array say is to be done."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsiseg.errors import FleetError, QueryError, WsisegError
from wsiseg.fleet import Job, jobs_in_folder, read_manifest, slurm_shard, take_shard


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def store(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"attributes": {"wsiseg": {"kind": "wsiseg tiles"}}}')


def test_a_folder_is_its_slides_by_suffix_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "A.NDPI", "notes.txt", "thumb.png", ".hidden.svs", "sub/b.svs", "a.mrxs", "a/Data0.dat")
    touch(tmp_path, "sub/.wsiseg/b.svs.json", "sub/b.svs.geojson")  # the results of a run, beside its slides
    store(tmp_path / "store.zarr")
    assert [job.name for job in jobs_in_folder(tmp_path, ["q"])] == ["A.NDPI", "a.mrxs", "b.svs", "store.zarr"]
    deep = [job.name for job in jobs_in_folder(tmp_path, ["q"], recursive=True)]
    assert "sub/b.svs" in deep
    assert "thumb.png" in [job.name for job in jobs_in_folder(tmp_path, ["q"], slide_mpp=0.5)]
    (job,) = (job for job in jobs_in_folder(tmp_path, [" q", "q"], slide_mpp=0.5) if job.name == "b.svs")
    assert job == Job(str(tmp_path / "b.svs"), "b.svs", ("q",), 0.5)


def test_a_link_to_a_folder_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "slides/a.svs", "archive/b.svs")
    (tmp_path / "slides" / "c.svs").symlink_to(tmp_path / "archive" / "b.svs")
    (tmp_path / "slides" / "more").symlink_to(tmp_path / "archive")
    touch(tmp_path, "slides/d.mrxs")
    (tmp_path / "slides" / "d").symlink_to(tmp_path / "archive")  # its data
    found = jobs_in_folder(tmp_path / "slides", ["q"], recursive=True)
    assert [job.name for job in found] == ["a.svs", "c.svs", "d.mrxs"]
    assert f"links to folders are not followed: {tmp_path / 'slides' / 'more'}\n" in caplog.text


def test_a_subfolder_that_cannot_be_read_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/b.svs", "a/lost+found/c.svs", "d.svs")
    scandir = os.scandir

    def refused(folder: Path) -> Any:  # root may read everything
        if folder.name == "lost+found":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    assert [job.name for job in jobs_in_folder(tmp_path, ["q"], recursive=True)] == ["a/b.svs", "d.svs"]
    assert f"left out, cannot be read: {tmp_path / 'a' / 'lost+found'}: Permission denied\n" in caplog.text
    with pytest.raises(FleetError, match=r"cannot read .*lost\+found: Permission denied"):
        jobs_in_folder(tmp_path / "a" / "lost+found", ["q"], recursive=True)


def test_a_folder_without_slides_says_where_else_to_look(tmp_path: Path) -> None:
    touch(tmp_path, "sub/b.svs")
    with pytest.raises(FleetError, match="--recursive looks in its subfolders"):
        jobs_in_folder(tmp_path, ["q"])
    with pytest.raises(FleetError, match=r"cannot read .*nix"):
        jobs_in_folder(tmp_path / "nix", ["q"])
    with pytest.raises(QueryError):
        jobs_in_folder(tmp_path, [" "], recursive=True)


def manifest(folder: Path, text: str | bytes) -> Path:
    (folder / "m.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / "m.csv"


def test_a_manifest_gives_each_slide_its_queries_scale_and_label(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "\ufeffslide,query,slide_mpp,label\r\n"
        'sub/a.svs,"the glands, all",0.25,case 1\r\n'
        "sub/a.svs,nuclei,0.25,case 1\r\n"
        "sub/a.svs,nuclei,0.25,case 1\r\n"
        "\r\n"
        "/data/a.svs,,0.25 0.26,\r\n"
        "s3://key@bucket/x/b.svs?token=secret,,,\r\n"
        "../up.svs,,,\r\n",
    )
    jobs = read_manifest(path, ["default"], slide_mpp=0.5)
    assert jobs == [
        Job(f"{tmp_path}/sub/a.svs", "sub/a.svs", ("the glands, all", "nuclei"), 0.25, "case 1"),
        Job("/data/a.svs", "data/a.svs", ("default",), (0.25, 0.26)),
        Job("s3://key@bucket/x/b.svs?token=secret", "s3/bucket/x/b.svs", ("default",), 0.5),
        Job(f"{tmp_path.parent}/up.svs", f"{tmp_path.parent}/up.svs".strip("/"), ("default",), 0.5),
    ]


def test_a_manifest_may_come_from_excel_where_the_comma_is_the_decimal_sign(tmp_path: Path) -> None:
    text = "\ufeffslide;query;slide_mpp\r\na.svs;glands, all;0,25\r\nb.svs;nuclei;0,25 0,26\r\nc.svs;nuclei;0.5\r\n"
    jobs = read_manifest(manifest(tmp_path, text))
    assert [(job.queries, job.slide_mpp) for job in jobs] == [
        (("glands, all",), 0.25), (("nuclei",), (0.25, 0.26)), (("nuclei",), 0.5)
    ]  # fmt: skip


def test_a_scale_is_for_slides_not_for_tile_stores(tmp_path: Path) -> None:
    store(tmp_path / "s.zarr")
    path = manifest(tmp_path, "slide,slide_mpp\ns.zarr,\na.svs,\nb.svs,0.25\n")
    assert [job.slide_mpp for job in read_manifest(path, ["q"], slide_mpp=0.5)] == [None, 0.5, 0.25]
    assert [job.slide_mpp for job in jobs_in_folder(tmp_path, ["q"], slide_mpp=0.5)] == [None]
    path = manifest(tmp_path, "slide,slide_mpp\ns.zarr,0.5\n")
    with pytest.raises(FleetError, match=r"line 2: s\.zarr is a tile store, which has its scale"):
        read_manifest(path, ["q"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first line names the columns"),
        ("slide\n", "names no slides"),
        ("path,query\na,q\n", "first line names the columns"),
        ("slide,spacing\na,0.5\n", "'slide,spacing'"),
        ("slide,query\na.svs\n", "line 2: 1 cells under 2 columns"),
        ("slide,query\na.svs,\n", "line 2: no query"),
        ("slide,query\n,q\n", "line 2: no slide"),
        ("slide,query,slide_mpp\na.svs,q,-1\n", "line 2: slide_mpp is '-1'"),
        ("slide,query,slide_mpp\na.svs,q,0.5\na.svs,r,0.6\n", "line 3: a.svs has another slide_mpp"),
        ("slide,query,label\na.svs,q,x\na.svs,r,y\n", "line 3: a.svs has another slide_mpp or label"),
        ("slide,query\na.svs,q\nA.svs,q\n", "would both write A.svs there"),
        ('slide,query\n"a.svs,q\n', "not CSV"),
        (b"slide,query\n\xff,q\n", "not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(FleetError) as caught:
        read_manifest(manifest(tmp_path, text))
    assert said in str(caught.value)
    assert "m.csv" in str(caught.value) or "a.svs" in str(caught.value)


cells = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["..", "../../etc/passwd", "/", "s3://b/../c", "a/./..", "C:\\x", "~/x", "http://[", "0.5"]),
    st.just("a" * 300),
)


@given(rows=st.lists(st.tuples(cells, cells, cells), max_size=4))
@example(rows=[("x/../../../y", "q", ""), ("http://h/%2e%2e/%2e%2e/y", "q", "")])
@example(rows=[("a\udc80.svs", "q", "0.5"), ("\x00", "q", "")])
@example(rows=[(".hidden/a.svs", "q", ""), ("é" * 150, "q", "")])
def test_whatever_a_manifest_says_outputs_stay_in_the_folder(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    text = "slide,query,slide_mpp\n" + "".join(
        ",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows
    )
    path = manifest(folder, text.encode("utf-8", "replace"))
    try:
        jobs = read_manifest(path)
    except WsisegError:
        return
    for job in jobs:
        assert (folder / "out" / f"{job.name}.geojson").resolve().is_relative_to(folder / "out")
        assert not any(part.startswith(".") or len(part.encode()) > 200 for part in job.name.split("/"))
    assert len({job.name for job in jobs}) == len(jobs)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_manifest_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = manifest(tmp_path_factory.mktemp("m"), b"slide,query\n" + data)
    with suppress(WsisegError):
        assert read_manifest(path)


def test_shards_are_all_jobs_and_none_twice() -> None:
    jobs = [Job(str(i), str(i), ("q",)) for i in range(10)]
    shards = [take_shard(jobs, (i, 4)) for i in (1, 2, 3, 4)]
    assert sorted((job for shard in shards for job in shard), key=jobs.index) == jobs


def test_a_slurm_array_says_which_shard() -> None:
    def array(task: int, first: int, last: int, count: int) -> dict[str, str]:
        values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
        return {f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in values.items()}

    assert slurm_shard({}) is None
    assert slurm_shard(array(0, 0, 7, 8)) == (1, 8)
    assert slurm_shard(array(8, 1, 8, 8)) == (8, 8)
    assert slurm_shard(array(5, 5, 5, 1)) == (1, 1)  # one task of an array, sent again: it does what is missing
    with pytest.raises(FleetError, match="leave no gaps"):
        slurm_shard(array(3, 1, 7, 3))


def test_a_job_takes_a_query_as_segment_does() -> None:
    assert Job("/a.svs", "a.svs", " the glands").queries == ("the glands",)  # type: ignore[arg-type]
    assert Job("/a.svs", "a.svs", ["the glands", "nuclei"] * 2).queries == ("the glands", "nuclei")  # type: ignore[arg-type]
    with pytest.raises(QueryError):
        Job("/a.svs", "a.svs", ("nuclei", " "))
