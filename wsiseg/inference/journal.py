"""Answers, kept as they come: what a killed run leaves behind, and the same command goes on from.

A file of frames, appended batch by batch: length and CRC-32 (both uint32, little-endian) and a body, which is one
line of JSON (indices, and for each query probability and place of `<SEG>`, reasoning and length of the mask) and
then the masks, uint8 under zstd. A frame that was cut off, and whatever follows it, is forgotten. The file is named
by what the answers depend on, so that no other question finds it. Whoever made it removes it when the result is safe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import orjson

from wsiseg import __version__
from wsiseg.files import write_all
from wsiseg.inference import Segmenter, TileMask
from wsiseg.inference.shots import Shot
from wsiseg.qupath import without_surrogates
from wsiseg.tiles import Grid
from wsiseg.tiles.shard import decode_chunk, encode_chunk

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")

Batch = tuple[np.ndarray, dict[str, list[TileMask]]]  # indices (B,), B answers to each query


class Journal:
    """The answers about the tiles of one grid. A context manager: closes the file, does not remove it.

    One without a path keeps nothing; nor does one that cannot be written (no error), or that another
    process is writing. Without `gaps`, answers from the first tile on that was left out are forgotten.
    """

    def __init__(self, path: Path | None, tile_size: int, *, gaps: bool = True) -> None:
        self._path, self._tile_size, self._gaps = path, tile_size, gaps
        self._file: IO[bytes] | None = None

    def replay(self) -> Iterator[Batch]:
        """What was answered already, in order; to be taken to its end before anything is added."""
        if self._path is None or not self._path.exists():
            return
        self._open(self._path)
        if self._file is None:
            return
        end = following = 0
        while body := self._body(self._file):
            indices, masks = self._batch(body)
            if not self._gaps and len(indices) != 1 + indices[-1] - following:
                break
            yield indices, masks
            end, following = self._file.tell(), int(indices[-1]) + 1
        self._file.seek(end)
        with suppress(OSError):
            self._file.truncate()

    def add(self, indices: np.ndarray, masks: Mapping[str, Sequence[TileMask]]) -> None:
        """Keep the answers to one batch."""
        if self._file is None and self._path is not None:
            self._open(self._path)
        if self._file is None:
            return
        chunks = {q: [_encoded(mask.probability) for mask in answers] for q, answers in masks.items()}
        said = {
            q: [
                [
                    float(mask.seg_probability),
                    mask.seg_position,
                    without_surrogates(mask.reasoning),
                    chunk and len(chunk),
                ]
                for mask, chunk in zip(masks[q], chunks[q], strict=True)
            ]
            for q in masks
        }
        line = orjson.dumps({"indices": indices.tolist(), "answers": said}) + b"\n"
        body = b"".join([line, *(chunk for of_query in chunks.values() for chunk in of_query if chunk)])
        frame = _HEAD.pack(len(body), zlib.crc32(body)) + body
        try:
            write_all(self._file, frame)
        except OSError as error:
            self._give_up(error)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self, path: Path) -> None:
        """Unless another process has it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            self._give_up(error)
            return
        if not _is_ours_alone(self._file):
            self._file.close()
            self._file = self._path = None

    def _give_up(self, error: OSError) -> None:
        # No warning: where the disk is full the output cannot be written either, and that is told.
        log.info("answers are not kept for the case of an interruption: %s", error.strerror or error)
        if self._file is not None and self._path is not None:
            self._file.close()
            with suppress(OSError):
                self._path.unlink()
                self._path.parent.rmdir()  # unless something else lies there
        self._file = self._path = None

    @staticmethod
    def _body(file: IO[bytes]) -> bytes | None:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        length, crc = _HEAD.unpack(head)
        body = file.read(length)
        return body if len(body) == length and zlib.crc32(body) == crc else None

    def _batch(self, body: bytes) -> Batch:
        at = body.index(b"\n") + 1
        said = orjson.loads(body[:at])
        masks: dict[str, list[TileMask]] = {}
        for query, answers in said["answers"].items():
            masks[query] = []
            for seg_probability, seg_position, reasoning, length in answers:
                probability = None
                if length is not None:
                    probability = _decoded(body[at : at + length], self._tile_size)
                    at += length
                chance = math.nan if seg_probability is None else seg_probability  # JSON has no NaN
                masks[query].append(TileMask(probability, reasoning, chance, seg_position))
        return np.array(said["indices"], np.int64), masks


def open_journals(
    folder: str | os.PathLike[str] | None,
    passes: Sequence[tuple[Grid, Sequence[str]]],
    model: Segmenter,
    examples: Sequence[Shot] = (),
    how: Sequence[object] = (),
    *,
    gaps: bool = True,
) -> list[Journal]:
    """The journals in `folder` for these queries, with these examples, on these grids to this model.

    Those of other questions go. how: whatever else decides the answers. gaps: as in `Journal`.

    None: journals that keep nothing.
    """
    if folder is None:
        return [Journal(None, grid.spec.tile_size) for grid, _ in passes]
    folder = Path(folder)
    further = [*(example.fingerprint for example in examples), *map(str, how)]
    paths = [folder / f"{_key(grid, [*queries, *further], model)}.answers" for grid, queries in passes]
    for other in set(folder.glob("*.answers")) - set(paths):
        with suppress(OSError):
            other.unlink()
    return [Journal(path, grid.spec.tile_size, gaps=gaps) for path, (grid, _) in zip(paths, passes, strict=True)]


def _key(grid: Grid, question: Sequence[str], model: Segmenter) -> str:
    asked = [__version__, grid.slide.fingerprint, grid.fingerprint, model.name, model.fingerprint, *question]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]


def rounded(mask: TileMask) -> TileMask:
    """With the probability in steps of 1/255, as a journal keeps it and as the canvas will.

    All answers are rounded so, whether or not any is kept: the outlines are the same with an interruption and
    without.
    """
    if mask.probability is None:
        return mask
    return replace(mask, probability=_to_float(_to_byte(mask.probability)))


def _to_byte(probability: np.ndarray) -> np.ndarray:
    return np.rint(probability * np.float32(255)).astype(np.uint8)


def _to_float(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1 / 255)


def _encoded(probability: np.ndarray | None) -> bytes | None:
    return None if probability is None else encode_chunk(_to_byte(probability))


def _decoded(chunk: bytes, tile_size: int) -> np.ndarray:
    values = np.empty((tile_size, tile_size), np.uint8)
    decode_chunk(chunk, values)
    return _to_float(values)


def _is_ours_alone(file: IO[bytes]) -> bool:
    """Lock it for this process, which ends with it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
