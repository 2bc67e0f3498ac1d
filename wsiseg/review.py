"""What a person decided about an object, as it is kept in its metadata."""

from __future__ import annotations

REVIEW = "review"
"""The metadata key of the decision."""

REVIEWS = ("", "accepted", "rejected")

EDITED = "edited"
"""The metadata key that marks an outline which a person moved."""
