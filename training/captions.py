"""Image–text pairs in a JSONL file, one `{"image": "path", "text": "…"}` a line, paths relative to the file."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from wsiseg.errors import DataError, SlideError
from wsiseg.training.data.importers import read_image
from wsiseg.training.examples import Example, Question

_PROMPTS = (
    "Describe this image.",
    "What does this image show?",
    "describe the tissue",
    "What can be seen here?",
    "Write a description of this picture.",
)
_LONGEST = 2000  # characters; what is beyond is cut at a word, where there are words
_VALIDATION = 20  # one picture in so many is kept back, chosen by its name


@dataclass(frozen=True)
class Caption:
    image: Path
    text: str

    @property
    def split(self) -> str:
        """A picture with several texts is in one split, in every run."""
        return "train" if zlib.crc32(self.image.name.encode()) % _VALIDATION else "val"


def read_captions(path: Path) -> list[Caption]:
    """The pairs of a JSONL file.

    Raises:
        DataError: the file is missing, has no pair to train on, or lines are no pair or name no file; the first
            five of them are said.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the pairs in {path}: {error}") from error
    captions, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
            image, text = path.parent / pair["image"], " ".join(pair["text"].split())
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            wrong.append(f'line {number} is no {{"image": …, "text": …}}')
            continue
        if not image.is_file():
            wrong.append(f"line {number}: there is no image {image}")
        elif not text:
            wrong.append(f"line {number}: the text is empty")
        else:
            captions.append(Caption(image, text))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(f"{path}: {'; '.join(wrong[:5])}{more}")
    if not any(caption.split == "train" for caption in captions):
        raise DataError(f"{path} holds {len(captions)} pairs, none of them to train on; add more images")
    return captions


class CaptionStream(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Pairs as examples by position. The picture is seen whole, since the text is about all of it, padded with
    white to a square, and neither turned nor recoloured, since texts speak of places and colours."""

    def __init__(self, captions: list[Caption], split: str, size: int, *, seed: int, length: int) -> None:
        self.captions = [caption for caption in captions if caption.split == split]
        self.size, self.seed, self.length = size, seed, length

    def __len__(self) -> int:
        return self.length if self.captions else 0

    def __getitem__(self, position: int) -> Example:
        rng = np.random.default_rng((self.seed, position))
        caption = self.captions[int(rng.integers(len(self.captions)))]
        try:
            picture = Image.fromarray(read_image(caption.image))
        except SlideError as error:
            raise DataError(f"{error}; or remove its line") from error
        square = ImageOps.pad(picture, (self.size, self.size), color="white")
        text = caption.text
        if len(text) > _LONGEST:
            end = text.rfind(" ", _LONGEST - 200, _LONGEST)  # there is none in Chinese
            text = text[: end if end > 0 else _LONGEST]
        prompt = _PROMPTS[int(rng.integers(len(_PROMPTS)))]
        return Example(np.asarray(square), None, (Question(prompt, text, None),))
