"""What a person decided about an object, as it is kept in its metadata."""

from __future__ import annotations

from collections.abc import Mapping

REVIEW = "review"
"""The metadata key of the decision."""

REVIEWS = ("", "accepted", "rejected")

EDITED = "edited"
"""The metadata key that marks an outline which a person moved."""


def is_kept(metadata: Mapping[str, str]) -> bool:
    """Whether nobody rejected the object."""
    return metadata.get(REVIEW) != "rejected"
