"""Decisions beside the data, never in it: open.zarr has open.review/.

    open.review/
      dr-x-5f3a91c2.jsonl    a reviewer's decisions, a line for each; of several on one subject the last counts
      masks/<sha256>.png     corrected masks: 16-bit labels, named by their content

Lines are only ever added, and are on the disk before anybody is told so: what was decided survives whatever
happens to the server or the browser.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

from wsiseg.errors import DataError, OutputError
from wsiseg.files import atomic_write, make_folder, write_all
from wsiseg.qupath import clean_name, clean_text
from wsiseg.training.review.subjects import PARTS, Subject

VERDICTS = ("", "accepted", "corrected", "rejected")
"""The first takes an earlier one back."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What one person said of one subject.

    judged: the subject's fingerprint at that time. text: a corrected chain. mask: name of a corrected mask.
    """

    subject: Subject
    verdict: str
    judged: str
    name: str
    time: str
    text: str = ""
    mask: str = ""


Reviews = dict[str, dict[Subject, Decision]]
"""Reviewer → subject → decision."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def review_folder(store: str | os.PathLike[str]) -> Path:
    """Beside the data set: open.zarr → open.review."""
    return Path(store).with_suffix(".review")


def reviewer_name(text: str) -> str:
    """A name on one line. Raises DataError if nothing is left of it."""
    name = clean_name(text)
    if not name:
        raise DataError('a decision needs a name: give yours with --name, for example --name "Dr. X"')
    return name


def append(folder: Path, decisions: Sequence[Decision]) -> None:
    """Add decisions of one reviewer, all or none, and return when they are on the disk.

    Raises:
        OutputError: they cannot be written.
    """
    path = folder / _file_name(decisions[0].name)
    data = b"".join(orjson.dumps(_to_json(decision)) + b"\n" for decision in decisions)
    try:
        folder.mkdir(exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 1))
            if file.read(1) not in (b"", b"\n"):
                data = b"\n" + data  # somebody was killed within a line
            try:
                write_all(file, data)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(length)
                raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read_reviews(folder: Path) -> Reviews:
    """All decisions that stand. Lines that are none (a torn one, a foreign one) are left out and told.

    Raises:
        DataError: a file cannot be read.
    """
    reviews: Reviews = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        decisions = [_from_json(line) for line in lines]
        if None in decisions:
            _log.warning("%s: line %d is no decision, and was left out", path, decisions.index(None) + 1)
        for decision in decisions:
            if decision is not None:
                reviews.setdefault(decision.name, {})[decision.subject] = decision
    stand = {
        name: {subject: decision for subject, decision in own.items() if decision.verdict}
        for name, own in reviews.items()
    }
    return {name: own for name, own in stand.items() if own}


def save_mask(folder: Path, labels: np.ndarray) -> str:
    """Keep a corrected mask (H, W) uint16 and return its name. OutputError: it cannot be written."""
    name = hashlib.sha256(repr(labels.shape).encode() + labels.astype("<u2").tobytes()).hexdigest()
    path = _mask_path(folder, name)
    if not path.exists():
        make_folder(path.parent)
        with atomic_write(path) as file:
            Image.fromarray(labels).save(file, "PNG")
    return name


def load_mask(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The corrected mask (H, W) uint16 of that name. DataError: it is gone, damaged, or of another shape."""
    path = _mask_path(folder, name)
    try:
        with Image.open(path) as picture:
            labels = np.asarray(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the corrected mask {path}: {error}") from error
    if labels.shape != shape[:2] or labels.dtype != np.uint16:
        raise DataError(f"{path} is {labels.shape} {labels.dtype}, not {shape[:2]} uint16")
    return labels


def _mask_path(folder: Path, name: str) -> Path:
    return folder / "masks" / f"{name}.png"


def _file_name(name: str) -> str:
    """A file for every name, whatever is in it: what a path may hold, and a hash to tell apart what looks alike."""
    plain = "-".join(re.findall(r"[a-z0-9]+", name.lower()))[:40]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"


def _to_json(decision: Decision) -> dict[str, str]:
    subject = decision.subject
    line = {
        "time": decision.time,
        "name": decision.name,
        "part": subject.part,
        "image": subject.image,
        "concept": subject.concept,
        "query": subject.query,
        "verdict": decision.verdict,
        "judged": decision.judged,
        "text": decision.text,
        "mask": decision.mask,
    }
    return {key: value for key, value in line.items() if value or key == "verdict"}


def _from_json(line: bytes) -> Decision | None:
    try:
        values: dict[str, Any] = orjson.loads(line)
        text = {key: values.get(key, "") for key in ("query", "text", "mask")}
        required = [values[key] for key in ("part", "image", "concept", "verdict", "judged", "name", "time")]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    if not all(isinstance(value, str) for value in [*required, *text.values()]):
        return None
    part, image, concept, verdict, judged, name, time = required
    is_known = part in PARTS and verdict in VERDICTS and clean_name(name) == name != ""
    if not is_known or not re.fullmatch(r"([0-9a-f]{64})?", text["mask"]):
        return None
    if verdict == "corrected" and not (text["mask"] if part == PARTS[0] else text["text"]):
        return None
    subject = Subject(part, image, concept, text["query"])
    return Decision(subject, verdict, judged, name, time, clean_text(text["text"]), text["mask"])
