"""Whether outlines belong to a slide, and where on it they lie."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
import shapely

from tests.tiles.fakes import FakeSlide
from wsiseg.belonging import Place, misplaced, place_of, slide_facts, take_scale
from wsiseg.errors import GeoJSONError
from wsiseg.geojson import Annotation
from wsiseg.mask.regions import Origin
from wsiseg.tiles import SlideIdentity

BOUNDS = (1000, 500, 2000, 1500)
SLIDE = SlideIdentity("s.svs", "f", "v", 4000, 3000, 0.25, 0.5, BOUNDS)


@pytest.mark.parametrize(
    ("box", "origin", "outside"),
    [
        ((-5, 10, 5, 20), "slide", False),
        ((-10, 10, 0, 20), "slide", True),  # touching is not lying on it
        ((3990, 10, 4010, 20), "slide", False),
        ((4000, 10, 4010, 20), "slide", True),
        ((10, 3500, 20, 3510), "slide", True),
        ((-500, 10, -400, 20), "qupath", False),  # of the slide, beside its bounds
        ((3000, 10, 3010, 20), "qupath", True),
        ((10, 2500, 20, 2510), "qupath", True),
    ],
)
def test_what_lies_wholly_outside_is_told(box: tuple[int, ...], origin: Origin, outside: bool) -> None:
    slide: Any = FakeSlide(dimensions=(4000, 3000), l0_bounds=BOUNDS)
    outline = Annotation(uuid.uuid4(), shapely.box(*box), "", "", (1, 2, 3))
    assert bool(misplaced([outline], {}, slide, origin)) == outside


def test_a_file_says_where_its_outlines_lie() -> None:
    facts = slide_facts(SLIDE)
    for origin, l0_origin in (("slide", (0, 0)), ("qupath", (1000, 500)), (None, (1000, 500))):
        place = place_of({"slide": facts, "origin": origin})
        assert place == Place("s.svs", 4000, 3000, (0.25, 0.5), l0_origin)
    for wrong in ({"dimensions": [0, 5]}, {"mpp": [0, 0.5]}, {"mpp": [0.5, 600]}, {"bounds": [1, 2]}):
        with pytest.raises(GeoJSONError, match="--slide"):
            place_of({"slide": facts | wrong})


@pytest.mark.parametrize(
    ("supplied", "fingerprint", "taken"), [(None, "f", (0.25, 0.5)), ((1, 1), "f", (1, 1)), (None, "another", None)]
)
def test_the_scale_of_the_outlines_is_that_of_their_own_slide(supplied: Any, fingerprint: str, taken: Any) -> None:
    slide: Any = SimpleNamespace(supplied_mpp=supplied, fingerprint=fingerprint)
    take_scale(slide, {"slide": slide_facts(SLIDE)})
    assert slide.supplied_mpp == taken
