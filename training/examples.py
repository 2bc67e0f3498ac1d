"""From stored samples to training examples: a random view, several questions about it, the right answers.

Everything random about example `i` of step `k` follows from (seed, k, i): a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from wsiseg.model.config import PathChatConfig
from wsiseg.training.annotate.verdict import measure
from wsiseg.training.annotate.write import chain_in_view
from wsiseg.training.augment import jitter_stain, random_crop, restain
from wsiseg.training.composite import on_other_tissue, open_lumens, patchwork, stroma_ground
from wsiseg.training.data.absent import NONSENSE
from wsiseg.training.data.annotate import describe, refuse
from wsiseg.training.data.chains import Chain
from wsiseg.training.data.concepts import CONCEPTS, MASKED, concept_of
from wsiseg.training.data.queries import Split, plain_query, sample_noisy_query, sample_query
from wsiseg.training.data.store import QuadrupletStore, Sample
from wsiseg.training.mix import SourceMix
from wsiseg.training.shots import ShotPool, ShotView, random_shot

# µm per pixel of training views: cells are asked about closer up than tissue architecture.
_CELL_MPP, _TISSUE_MPP = (0.28, 0.75), (0.6, 1.6)
_ASSUMED_MPP = 0.5  # where the source states none
_BLANK_SHARE = 0.08
_NOISY_SHARE = 0.35  # training queries among words that say nothing
_PASTE_SHARE = 0.6  # views of glands that are tried on other tissue, half of the time their own stroma
_LUMEN_SHARE = 0.25  # views of glands that get wide lumens
_STROMA_SHARE = 0.04  # views of glands that become views of their stroma alone
_FAR_SHARE = 0.3  # views of nuclei of healthy organs that become views of these organs from afar
_NONSENSE_SHARE = 0.3  # of the questions about things: words that do not exist
_RESTAIN_SHARE = 0.5
_EDGE_SHARE = 0.2  # views over which the edge of the tissue is drawn
_NAMES = tuple(CONCEPTS)
_TAUGHT = tuple(name for name, concept in CONCEPTS.items() if not concept.held_back)
_ASKED = {"gland": 4.0, "nucleus": 4.0, "malignant": 2.0, "tissue": 0.8, "glass": 0.25}  # relative
_COARSE_SHARE = 0.08  # of views of carcinoma in which glands may be asked for: outlines there include the stroma
_MIN_FRACTION = 0.004  # of the view; less of a structure than this is neither a fair yes nor a fair no


@dataclass(frozen=True)
class View:
    """A view (S, S, 3) uint8 at `mpp` µm per pixel with its label maps (S, S) uint16 and what is known absent."""

    image: np.ndarray
    layers: dict[str, np.ndarray]
    absent: tuple[str, ...]
    mpp: float
    patient: tuple[str, str] = ("", "")  # source and group


@dataclass(frozen=True)
class Question:
    """One question about a view; `mask` (S, S) bool where the answer is an outline, None where it is a no."""

    query: str
    answer: str
    mask: np.ndarray | None
    concept: str = ""
    shot: ShotView | None = None  # shown before the question is asked
    taught: bool = True  # whether the answer is to be learned, not only what it outlines


@dataclass(frozen=True)
class Example:
    """A view (S, S, 3) uint8 at `mpp` µm per pixel (None: not told) with its questions."""

    image: np.ndarray
    mpp: float | None
    questions: tuple[Question, ...]
    wordings: tuple[tuple[str, int], ...] = ()  # further queries and the index of the concept that each means


class ExampleStream(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Examples of a split, addressed by position: item `k` is the same in every run with the same seed.

    As many as are asked for, or none where the split has no images.
    """

    def __init__(
        self,
        store: QuadrupletStore,
        config: PathChatConfig,
        *,
        split: Split,
        seed: int,
        questions: int,
        length: int,
        source_weights: dict[str, float] | None = None,
        augment: bool = True,
        cache: int = 0,
        wordings: int = 0,
        example_share: float = 0.0,
        chain_share: float = 0.0,
        misled_share: float = 0.0,
    ) -> None:
        """chain_share: of the views of images that `wsiseg data annotate` wrote chains for, those that show the whole
        image, upright and in its own colours, as the chains describe it; see `whole_view`. misled_share: of the
        outlines, those that are to be drawn after a chain that is wrong; see `_misled`."""
        self.config, self.size, self.seed, self.questions = config, config.tile_size, seed, questions
        self.split, self.length, self.augment, self.wordings = split, length, augment, wordings
        self.mix = SourceMix(store, split, source_weights or {}, cache)
        self.example_share, self.pool = example_share, ShotPool(store, split, self.mix.sample)
        self.misled_share = misled_share
        self.chain_share, self.chains = chain_share, dict[str, dict[str, Chain]]()  # by image and concept
        for chain in store.chains.values():
            if chain.text:
                self.chains.setdefault(chain.image, {})[chain.concept] = chain

    def __len__(self) -> int:
        return self.length if self.mix.sources else 0

    def __getitem__(self, position: int) -> Example:
        rng = np.random.default_rng((self.seed, position))
        view, chains = self._described(rng) or (self.view(rng), {})
        example = ask(view, rng, self.questions, self.split, chains)
        if self.example_share and rng.random() < self.example_share:
            example = replace(example, questions=tuple(self._shown(q, view, rng) for q in example.questions))
        if self.misled_share:
            told, share = example.mpp, self.misled_share
            asked = (_misled(q, view, told, rng) if rng.random() < share else q for q in example.questions)
            example = replace(example, questions=tuple(asked))
        return replace(example, wordings=tuple(random_wording(rng, self.split) for _ in range(self.wordings)))

    def _described(self, rng: np.random.Generator) -> tuple[View, dict[str, Chain]] | None:
        """The whole of an image and the chains that describe it, if chance draws that."""
        if not (self.chains and self.chain_share) or rng.random() >= self.chain_share:
            return None
        sample = self.mix.draw(rng)
        view = whole_view(sample, self.size, is_close(sample, self.config)) if sample.name in self.chains else None
        return None if view is None else (view, self.chains[sample.name])

    def _shown(self, question: Question, view: View, rng: np.random.Generator) -> Question:
        shot = random_shot(self.pool, question.concept, view.patient, view.mpp, self.size, rng)
        return replace(question, shot=shot)

    def view(self, rng: np.random.Generator) -> View:
        """A random view of a random image of the split, or of blank glass."""
        if rng.random() < _BLANK_SHARE:
            return random_view(blank_sample(self.size, rng), rng, self.size, False, augment=False)
        sample = self.mix.draw(rng)
        if self.augment and "gland" in sample.layers:
            sample = self._resettled(sample, rng)
        elif self.augment and _healthy(sample) and rng.random() < _FAR_SHARE:
            sample = self._from_afar(sample, rng)
        return random_view(sample, rng, self.size, is_close(sample, self.config), augment=self.augment)

    def _from_afar(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A patchwork of the organ of `sample`, or of it and others, a row each."""
        others = [self.mix.draw_from(sample.source, rng) for _ in range(2)] if rng.random() < 0.5 else []
        organs = [sample, *(other for other in others if _healthy(other))]
        return patchwork([self.mix.draw_like(organs[k // 3 % len(organs)], rng) for k in range(9)], rng)

    def _resettled(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Glands with other lumens, on other tissue, or none but their stroma, as chance will have it.

        Other tissue must be known to hold nothing of what is outlined: carcinoma is not laid on another tumour.
        """
        if rng.random() < _LUMEN_SHARE:
            sample = open_lumens(sample, rng)
        chance = rng.random()
        if chance >= _PASTE_SHARE + _STROMA_SHARE:
            return sample
        ground: Sample | None = sample
        if chance < _PASTE_SHARE / 2:
            ground = self.mix.draw_from(self.mix.sources[int(rng.integers(len(self.mix.sources)))], rng)
        outlined = {"gland", "malignant", "dysplastic"} & sample.layers.keys()
        if ground is not None and "stroma" in ground.layers:
            ground = stroma_ground(ground, rng)
            outlined = {"gland"}  # the stroma between a tumour's glands holds none of them
        if ground is None or "gland" in ground.layers or not outlined <= set(ground.absent):
            return sample
        return on_other_tissue(sample, ground, rng) if chance < _PASTE_SHARE else ground


def _healthy(sample: Sample) -> bool:
    """Whether it is a picture of nuclei where no tumour is."""
    return "malignant" in sample.absent and set(sample.layers) == {"nucleus"}


def random_wording(rng: np.random.Generator, split: Split) -> tuple[str, int]:
    """A query for any concept, half of the time for one that has masks, and the index of that concept."""
    names = MASKED if rng.random() < 0.5 else _TAUGHT
    name = names[int(rng.integers(len(names)))]
    name = _or_nonsense(name, rng)
    return _query(name, rng, split), _NAMES.index(name)


def in_plain_words(question: Question) -> Question:
    """The question in the words of `plain_query`."""
    if question.concept in ("", NONSENSE.key):  # which has no name
        return question
    return replace(question, query=plain_query(question.concept))


def _query(name: str, rng: np.random.Generator, split: Split) -> str:
    noisy = split == "train" and rng.random() < _NOISY_SHARE
    return sample_noisy_query(name, rng) if noisy else sample_query(name, rng, split)


def _or_nonsense(name: str, rng: np.random.Generator) -> str:
    """`name`, or where it is that of a thing, now and then of what does not exist."""
    return NONSENSE.key if concept_of(name).thing and rng.random() < _NONSENSE_SHARE else name


def blank_sample(size: int, rng: np.random.Generator) -> Sample:
    """Empty glass, which every slide has and no data set shows: bright, nearly colourless, a little uneven."""
    absent = tuple(name for name in MASKED if name != "glass")
    # Glass itself is rarely asked for: the answer to a picture of glass must not be "glass", whatever was asked.
    layers = {"glass": np.ones((size, size), np.uint16)} if rng.random() < 0.1 else {}
    return Sample(glass_pixels(size, rng), layers, tuple(layers), absent, None, "blank", "blank", "train", "blank")


def glass_pixels(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8 of unstained glass."""
    level = rng.uniform(225, 252) + rng.normal(0, 2, 3)
    slope = np.linspace(-1, 1, size)[:, None, None] * rng.normal(0, 2)
    noise = rng.normal(0, rng.uniform(0.3, 2), (size, size, 1))
    return np.clip(level + slope + noise, 0, 255).astype(np.uint8)


def cut_edge(view: np.ndarray, layers: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Put glass beyond a random, slightly wavy line through the view; `layers` are cut in place."""
    size = len(view)
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    beyond = across + 0.03 * np.sin(along * rng.uniform(10, 40)) > shift
    for name, layer in layers.items():
        layer[beyond] = 1 if name == "glass" else 0
    return np.where(beyond[..., None], glass_pixels(size, rng), view)


def is_close(sample: Sample, config: PathChatConfig) -> bool:
    """Whether it shows what the model will be asked for close up: cells, such as nuclei, mitoses, plasma cells."""
    return any(config.asks_for_cells(concept_of(name).name) for name in sample.layers)


def random_scale(sample: Sample, rng: np.random.Generator, size: int, close: bool) -> float:
    """Source pixels per pixel of a random view of `size`² pixels: close up for cells, farther for tissue."""
    low, high = _CELL_MPP if close and rng.random() < 0.9 else _TISSUE_MPP
    target = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    largest = 1.25 * min(sample.image.shape[:2]) / size
    return float(np.clip(target / (sample.mpp or _ASSUMED_MPP), 0.4, largest))


def random_view(sample: Sample, rng: np.random.Generator, size: int, close: bool, *, augment: bool = True) -> View:
    """A crop of `sample` at a random scale; augmented, at another edge of the tissue and in other stains."""
    scale = random_scale(sample, rng, size, close)
    image, layers = random_crop(sample.image, sample.layers, size=size, scale=scale, rng=rng)
    absent = sample.absent
    if augment:
        if rng.random() < _EDGE_SHARE:
            image = cut_edge(image, layers, rng)
            absent = tuple(name for name in absent if name != "glass")
        if rng.random() < _RESTAIN_SHARE:
            image = restain(image, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        image = (jitter_stain(tensor, generator)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    patient = (sample.source, sample.group)
    return View(image, layers, absent, (sample.mpp or _ASSUMED_MPP) * scale, patient)


def whole_view(sample: Sample, size: int, close: bool) -> View | None:
    """All of `sample`, padded with white to a square, as its stored chains describe it: not turned, not recoloured.

    None where that would be coarser than any view that training asks about.
    """
    height, width = sample.image.shape[:2]
    side = max(height, width)
    mpp = (sample.mpp or _ASSUMED_MPP) * side / size
    if mpp > (_CELL_MPP if close else _TISSUE_MPP)[1]:
        return None
    top, left = (side - height) // 2, (side - width) // 2
    widths = ((top, side - height - top), (left, side - width - left))
    square = Image.fromarray(np.pad(sample.image, (*widths, (0, 0)), constant_values=255))
    image = np.array(square.resize((size, size), Image.Resampling.BICUBIC))
    index = ((np.arange(size) + 0.5) * side / size).astype(np.intp)
    layers = {
        name: np.pad(layer, widths, constant_values=int(name == "glass"))[index[:, None], index[None]]
        for name, layer in sample.layers.items()
    }
    absent = tuple(name for name in sample.absent if name != "glass" or height == width)
    return View(image, layers, absent, mpp, (sample.source, sample.group))


def ask(
    view: View, rng: np.random.Generator, questions: int, split: Split, chains: Mapping[str, Chain] | None = None
) -> Example:
    """Up to `questions` questions about `view`, about a third of them or more about what is absent.

    With `chains`, by concept, only about what these are of; they are the answers as far as they hold of the view.
    """
    told = None if rng.random() < 0.15 else view.mpp
    layers = view.layers
    present = [name for name, layer in layers.items() if (layer > 0).mean() >= _MIN_FRACTION]
    if {"gland", "malignant"} <= set(present) and rng.random() > _COARSE_SHARE:
        present.remove("gland")
    absent = [name for name in view.absent if name not in layers]
    # A layer that marks every instance proves absence where it is empty; a partial one (stroma, lumen) does not.
    absent += [name for name, layer in layers.items() if concept_of(name).exhaustive and not layer.any()]
    if chains and not chains.keys().isdisjoint([*present, *absent]):
        present, absent = ([name for name in names if name in chains] for names in (present, absent))
    # Weighted order without replacement (Efraimidis & Spirakis 2006): what users ask for most comes first more often.
    present.sort(key={name: rng.exponential() / _ASKED.get(name, 1.0) for name in present}.__getitem__)
    rng.shuffle(absent)
    # Half of the time ask first for what other images do hold: those refusals are the hard ones.
    if rng.random() < 0.5:
        absent.sort(key=lambda name: not concept_of(name).has_masks)
    negatives = round(questions / 3) + int(rng.random() < 0.3)
    chosen = [(name, True) for name in present[: questions - min(negatives, len(absent))]]
    chosen += [(_or_nonsense(name, rng), False) for name in absent[: questions - len(chosen)]]
    asked = []
    for name, there in chosen:
        query = _query(name, rng, split)
        mask = layers[name] if there else None
        answer = _written(view, name, mask, told, chains or {})
        if mask is not None:
            asked.append(Question(query, answer or describe(view.image, mask, name, told, rng), mask > 0, name))
        else:
            asked.append(Question(query, answer or refuse(view.image, name, rng), None, name))
    return Example(view.image, told, tuple(asked))


def _more_or_less(layer: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A label map (S, S) whose parts are grown, half of the time into one another, or shrunk, or as they were."""
    reach, chance = int(rng.integers(3, 20)), rng.random()
    if chance < 0.4:
        layer = (layer > 0).astype(layer.dtype) if rng.random() < 0.5 else layer
        return np.asarray(ndimage.grey_dilation(layer, size=(reach, reach)))
    shrunk = ndimage.grey_erosion(layer, size=(reach, reach)) if chance < 0.7 else layer
    return np.asarray(shrunk) if shrunk.any() else layer


def _misled(question: Question, view: View, told: float | None, rng: np.random.Generator) -> Question:
    """The same outline to draw, after a chain that tells of the structure elsewhere, and of more or less of it.

    A chain is always right in training and is not in inference: a mask that believes it is wrong with it.
    """
    if question.mask is None:
        return question
    size = len(view.image)
    rows, columns = (
        (rng.uniform(0, size) + np.exp(rng.uniform(-0.7, 0.7)) * np.arange(size)).astype(np.intp) % size
        for _ in range(2)
    )
    elsewhere = _more_or_less(view.layers[question.concept][rows[:, None], columns], rng)
    if not elsewhere.any():
        return question
    return replace(question, answer=describe(view.image, elsewhere, question.concept, told, rng), taught=False)


def _written(
    view: View, name: str, mask: np.ndarray | None, told: float | None, chains: Mapping[str, Chain]
) -> str:
    """The stored chain of `name` as it holds of the view; "" where there is none, or nothing of it holds."""
    chain = chains.get(name)
    if chain is None or chain.present != (mask is not None):
        return ""
    return chain_in_view(chain, measure(name, view.image, mask, told))
