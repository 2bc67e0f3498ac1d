"""What is asked of a model: a few turns of text, perhaps with a picture, and the hash under which its reply is kept."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from wsiseg.errors import EndpointError

_SIDE_PX = 768  # longer side of the picture that is sent, about
_LINE_RGB = (0, 255, 0)  # no stain is of this colour
_DRAWING = 1  # to be raised when `outlined` draws otherwise


class RefusedError(EndpointError):
    """This request was refused or failed again and again; others may go through."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (H, W, 3) uint8 with the mask (H, W) whose outline is drawn on it, or None."""

    image: np.ndarray
    mask: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"{_DRAWING} {self.image.shape}".encode())
        digest.update(np.ascontiguousarray(self.image).data)
        if self.mask is not None:
            digest.update(np.ascontiguousarray(self.mask).data)
        return digest.hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of what is sent."""
        height, width = self.image.shape[:2]
        scale = min(4.0, _SIDE_PX / max(height, width))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def data_url(self) -> str:
        """As a JPEG, enlarged or reduced to about 768 px."""
        buffer = io.BytesIO()
        Image.fromarray(self.outlined()).save(buffer, "JPEG", quality=90, subsampling=0)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def outlined(self) -> np.ndarray:
        """(h, w, 3) uint8 at `size`, with a line of two pixels around every object, or between two that touch."""
        picture = np.array(Image.fromarray(self.image).resize(self.size, Image.Resampling.BICUBIC))
        if self.mask is None:
            return picture
        width, height = self.size
        y, x = (np.arange(n) * of // n for n, of in zip((height, width), self.mask.shape, strict=True))
        labels = self.mask[y[:, None], x[None]].astype(np.int32)
        around = ndimage.maximum_filter(labels, 5)  # the label next to a pixel, at most two pixels away
        picture[(around > 0) & (around != labels)] = _LINE_RGB
        return picture


@dataclass(frozen=True, eq=False)
class Request:
    """`turns` are what we said, what the model said, and so on in turn; the picture belongs to the first."""

    model: str
    system: str
    turns: tuple[str, ...]
    picture: Picture | None = None

    @cached_property
    def key(self) -> str:
        """The same for the same image, mask, prompt and model."""
        seen = self.picture.digest if self.picture else ""
        return hashlib.sha256(json.dumps([self.model, self.system, *self.turns, seen]).encode()).hexdigest()[:32]

    def body(self) -> dict[str, Any]:
        """As `POST /v1/chat/completions` takes it, but for the limit of the answer."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}]
        for number, text in enumerate(self.turns):
            messages.append({"role": "assistant" if number % 2 else "user", "content": text})
        if self.picture is not None:
            image = {"type": "image_url", "image_url": {"url": self.picture.data_url()}}
            messages[1]["content"] = [{"type": "text", "text": self.turns[0]}, image]
        return {"model": self.model, "messages": messages}

    def expected_tokens(self) -> int:
        """Tokens that the request may count: a quarter of its characters, and a picture's area over 28² pixels."""
        text = sum(map(len, (self.system, *self.turns))) // 4 + 20
        return text + (self.picture.size[0] * self.picture.size[1] // 784 + 90 if self.picture else 0)
