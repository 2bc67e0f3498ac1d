"""What the language model reads: Qwen2.5-VL's chat format, text before the image.

The text comes first so that everything before the image (system turn, query, scale) is the same for all tiles
of a slide and is computed once (see wsiseg.inference.decode). The image-first order of the published chat
template is kept out on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from wsiseg.errors import ModelError
from wsiseg.files import atomic_write

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SEG = "<SEG>"
SPECIAL_TOKENS = ("<|endoftext|>", IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, SEG)
SHOT_ANSWER = "It is outlined."  # what stands before `<SEG>` in the turn of an example


@dataclass(frozen=True)
class PromptTokens:
    """Token ids around the image: `before` (shared by all tiles of a slide), `after` (opens the answer).

    With examples in context, `shots` holds what stands before the image of each, and `before` begins behind the
    last of them: texts and images take turns, and all but the tile's own image and `after` is shared.
    """

    before: list[int]
    after: list[int]
    shots: tuple[list[int], ...] = ()

    @property
    def shared(self) -> list[list[int]]:
        """The texts that all tiles share; an example's image stands between each two."""
        return [*self.shots, self.before]


class PromptTokenizer:
    """A `tokenizer.json` with the ids that decoding needs, each checked to be exactly one token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.seg = self._single(SEG)
        self.end = self._single(IM_END)
        self.image_pad = self._single(IMAGE_PAD)
        self.vision_start = self._single(VISION_START)
        self.vision_end = self._single(VISION_END)
        # A completion must never contain these: placeholders would no longer match the features.
        self.suppressed = [self.vision_start, self.vision_end, self.image_pad, self._single(IM_START)]

    def save(self, path: Path) -> None:
        """Write it as a `tokenizer.json`. OutputError if that fails."""
        with atomic_write(path) as file:
            file.write(self.tokenizer.to_str(pretty=True).encode())

    @classmethod
    def from_file(cls, path: Path, *added: str) -> PromptTokenizer:
        """The tokenizer in a file, with `added` special tokens, which take the first free ids.

        Raises:
            ModelError: file missing, broken, or without a token that the chat format needs.
        """
        if not path.is_file():
            raise ModelError(f"no tokenizer at {path}; is the folder complete?")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises a bare Exception
            raise ModelError(f"cannot read the tokenizer at {path}: {error}") from error
        tokenizer.add_special_tokens(list(added))
        return cls(tokenizer)

    def _single(self, token: str) -> int:
        index = self.tokenizer.token_to_id(token)
        if index is None or self.tokenizer.encode(token, add_special_tokens=False).ids != [index]:
            raise ModelError(f"the tokenizer does not hold {token} as one token")
        return int(index)

    def prompt(self, query: str, mpp: float | None, system: str = "", shots: int = 0) -> PromptTokens:
        """The turn that asks `query` of an image at `mpp` µm per pixel (None: unknown).

        `shots` examples go before it, each a turn that asks the same of its own image and is answered by `<SEG>`.
        """
        head = f"{IM_START}system\n{system}{IM_END}\n" if system else ""
        scale = f" ({mpp:.1f} um/px)" if mpp is not None else ""
        # The query is foreign text: encoded apart, so that special tokens inside it stay plain characters.
        asked = [*self.encode_plain(" ".join(query.split()) + scale), self.vision_start]
        answer = f"{VISION_END}{IM_END}\n{IM_START}assistant\n"
        first = [*self.encode(f"{head}{IM_START}user\n"), *asked]
        further = [*self.encode(f"{answer}{SHOT_ANSWER}{SEG}{IM_END}\n{IM_START}user\n"), *asked]
        *before_shots, before = [first, *[further] * shots]
        return PromptTokens(before, self.encode(answer), tuple(before_shots))

    def encode(self, text: str) -> list[int]:
        """Ids of our own text; special tokens in it are recognised."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of foreign text; what looks like a special token in it is broken up first."""
        for token in SPECIAL_TOKENS:
            text = text.replace(token, token.replace("<", "< "))
        return self.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of generated ids without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
