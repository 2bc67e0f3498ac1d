"""`wsiseg info`: what a slide says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wsiseg.cli.options import backend_option, slide_mpp_option
from wsiseg.errors import MissingMppError

if TYPE_CHECKING:
    from wsiseg.slide import Slide


@click.command("info")
@click.argument("slide")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all of the slide's properties.")
@slide_mpp_option
@backend_option
def command(slide: str, as_json: bool, slide_mpp: Any, backend: str | None) -> None:
    """Show levels, microns per pixel, bounds and vendor of SLIDE (a path or URL)."""
    from wsiseg.slide import open_slide

    with open_slide(slide, backend=backend, slide_mpp=slide_mpp) as opened:
        facts = describe(opened)
    if as_json:
        import json

        # Not orjson, which refuses the surrogates of a name on disk that is no text.
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False).encode("utf-8", "replace"))
    else:
        print_table(facts)


def describe(slide: Slide) -> dict[str, Any]:
    """Everything known about a slide, ready for JSON. `mpp` is null where the slide has no usable one."""
    problem = None
    try:
        mpp = slide.mpp
    except MissingMppError as error:
        mpp, problem = None, str(error)
    return {
        "source": slide.source,
        "backend": slide.backend,
        "vendor": slide.vendor,
        "width": slide.dimensions[0],
        "height": slide.dimensions[1],
        "mpp": mpp,
        "mpp_problem": problem,
        "objective_power": slide.objective_power,
        "levels": [
            {"width": width, "height": height, "downsample": downsample}
            for (width, height), downsample in zip(
                slide.level_dimensions, slide.level_downsamples, strict=True
            )
        ],
        "bounds": slide.l0_bounds,
        "associated_images": slide.associated_images,
        "icc_profile_bytes": len(slide.icc_profile) if slide.icc_profile else None,
        "fingerprint": slide.fingerprint,
        "properties": dict(sorted(slide.properties.items())),
    }


def print_table(facts: dict[str, Any]) -> None:
    """The facts but the raw properties, on stdout."""
    mpp, bounds, icc = facts["mpp"], facts["bounds"], facts["icc_profile_bytes"]
    rows = {
        "slide": facts["source"],
        "vendor": f"{facts['vendor']} (read by {facts['backend']})",
        "size": f"{facts['width']} x {facts['height']} px",
        "microns per pixel": " x ".join(f"{value:g}" for value in mpp) if mpp else facts["mpp_problem"],
        "objective": f"{facts['objective_power']:g}x" if facts["objective_power"] else "not stated",
    }
    for i, level in enumerate(facts["levels"]):
        rows[f"level {i}"] = f"{level['width']} x {level['height']} px, 1/{level['downsample']:g}"
    rows |= {
        "bounds": "x {}, y {}, {} x {} px".format(*bounds) if bounds else "the whole slide",
        "other images": ", ".join(facts["associated_images"]) or "none",
        "ICC profile": f"{icc} bytes (noted, not applied)" if icc else "none",
        "fingerprint": facts["fingerprint"],
    }
    for name, value in rows.items():
        click.echo(f"{name:18} {value}")
