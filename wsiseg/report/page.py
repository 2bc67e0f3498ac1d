"""The page of a report: one HTML file with its pictures in it, without script, safe whatever names it shows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import IO, Any

import numpy as np
import shapely
from PIL import Image

from wsiseg import __version__
from wsiseg.belonging import misplaced
from wsiseg.errors import MissingMppError
from wsiseg.geojson import Annotation
from wsiseg.mask.regions import Origin
from wsiseg.qupath import DESCRIPTION, words_of
from wsiseg.render import close_up, overlay
from wsiseg.report.histogram import histogram_svg, short
from wsiseg.report.summary import ClassSummary, extremes, probability, summarize
from wsiseg.review import is_kept
from wsiseg.slide import Slide

_OVERVIEW_PX, _CLOSE_UP_PX = 1100, 300
_CLOSE_UPS = 6
_SURROUNDINGS = 3.0  # side of a close-up, in sides of its object
_PATHS = ("source", "image")  # members of `run` that name a file
_LEAST_L0 = 100  # px; a nucleus needs some neighbours to be judged


def write_report(
    slide: Slide,
    annotations: Sequence[Annotation],
    run: Mapping[str, Any],
    file: IO[bytes],
    *,
    origin: Origin = "qupath",
) -> None:
    """Write the report of `annotations` on `slide` to a binary file. Rejected ones only count as such.

    run: the member `wsiseg` of the GeoJSON: what made it. origin: where (0, 0) of the coordinates lies.

    Raises SlideError: the slide cannot be read.
    """
    for part in _page(slide, annotations, run, origin):
        file.write(part.encode("utf-8", "replace"))


def _page(
    slide: Slide, annotations: Sequence[Annotation], run: Mapping[str, Any], origin: Origin
) -> Iterator[str]:
    try:
        mpp: tuple[float, float] | None = slide.mpp
    except MissingMppError:
        mpp = None
    unit = "µm²" if mpp else "px²"
    classes = summarize(annotations, mpp)
    kept = [annotation for annotation in annotations if is_kept(annotation.metadata)]
    name = escape(_file_name(slide.source))
    yield _HEAD.format(name=name, style=_STYLE)
    width, height = slide.dimensions
    scale = f"{' × '.join(dict.fromkeys(f'{side:.4g}' for side in mpp))} µm/px" if mpp else "no scale stated"
    yield f"<header><h1>{name}</h1><p>{width:,} × {height:,} px · {scale} · {len(kept):,} outlines</p></header>"
    yield "<p class=note>For research use only: not a medical device, not for diagnosis.</p>"
    if warning := misplaced(annotations, run, slide, origin):
        yield f"<p><b>Warning: {escape(warning)}.</b></p>"
    picture = overlay(slide, kept, origin=origin, max_px=_OVERVIEW_PX)
    yield f'<img class=overview src="{_data_uri(picture)}" alt="The slide with all outlines">'
    yield f"<h2>Classes</h2>{_class_table(classes, unit, slide, mpp)}"
    if kept:
        yield "<p class=note>Areas are sums over outlines: where some lie over each other, it counts for each.</p>"
    if rejected := len(annotations) - len(kept):
        yield f"<p>Rejected outlines ({rejected:,}) are left out of all figures but the last column.</p>"
    if kept:
        histograms = "".join(_histogram(c, unit) for c in classes if len(c.areas))
        yield f"<h2>Sizes of objects</h2><div class=cards>{histograms}</div>"
    sure, doubtful = extremes(kept, _CLOSE_UPS)
    tree = shapely.STRtree([annotation.geometry for annotation in kept])
    for title, chosen in (("Most confident", sure), ("Most doubtful", doubtful)):
        if chosen:
            yield f"<h2>{title}</h2><div class=cards>"
            for annotation in chosen:
                yield _card(slide, annotation, kept, tree, origin, mpp)
            yield "</div>"
    if kept and not sure:
        yield "<p>No outline states a mean probability, so none is shown as sure or doubtful.</p>"
    yield f"<h2>How it was made</h2>{_table(_made_by(slide, run, origin))}</main></body></html>\n"


def _class_table(
    classes: Sequence[ClassSummary], unit: str, slide: Slide, mpp: tuple[float, float] | None
) -> str:
    if not classes:
        return "<p>There is no outline in the file.</p>"
    width, height = slide.l0_bounds[2:] if slide.l0_bounds else slide.dimensions
    whole = width * height * (mpp[0] * mpp[1] if mpp else 1)
    rows = []
    for c in classes:
        total = float(c.areas.sum())
        decided = ", ".join(f"{count:,} {decision}" for decision, count in c.reviews.items())
        cells = [
            f'<i style="background:rgb({c.color[0]} {c.color[1]} {c.color[2]})"></i>{escape(c.name)}',
            f"{len(c.areas):,}",
            _area(total, mpp is not None),
            f"{100 * total / whole:.3g} %",
            f"{short(np.median(c.areas))} {unit}" if len(c.areas) else "–",
            "–" if math.isnan(c.mean_probability) else f"{c.mean_probability:.3f}",
            decided or "–",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("Class", "Outlines", "Area in all", "Of the slide", "Median area", "Mean probability", "Reviewed")
    head = "".join(f"<th scope=col>{text}</th>" for text in heads)
    return f"<table class=figures><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _area(area: float, is_um2: bool) -> str:
    if not is_um2:
        return f"{short(area)} px²"
    return f"{short(area)} µm²" if 0 < area < 1000 else f"{area / 1e6:.4g} mm²"


def _histogram(c: ClassSummary, unit: str) -> str:
    label = f"Areas of {len(c.areas):,} objects of the class {escape(c.name)}"
    svg = histogram_svg(c.areas, unit, c.color, label)
    return f"<figure><figcaption><b>{escape(c.name)}</b></figcaption>{svg}</figure>"


def _card(
    slide: Slide,
    annotation: Annotation,
    annotations: Sequence[Annotation],
    tree: shapely.STRtree,
    origin: Origin,
    mpp: tuple[float, float] | None,
) -> str:
    """One object: its picture, how large it is, and what the model said."""
    x0, y0, x1, y1 = annotation.geometry.bounds
    side = max(_SURROUNDINGS * max(x1 - x0, y1 - y0), _LEAST_L0)
    x, y = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
    around = [annotations[i] for i in np.sort(tree.query(shapely.box(x, y, x + side, y + side)))]
    picture = close_up(slide, annotation, around, (x, y, side, side), origin=origin, max_px=_CLOSE_UP_PX)
    name = escape(annotation.classification or annotation.name or "no class")
    area = annotation.geometry.area
    facts = [
        f"probability {probability(annotation):.3f}",
        f"{short(area * mpp[0] * mpp[1])} µm²" if mpp else f"{short(area)} px²",
        f"at {(x0 + x1) / 2:,.0f}, {(y0 + y1) / 2:,.0f}",
    ]
    said = escape(words_of(annotation.metadata.get(DESCRIPTION, "")))
    return (
        f'<figure><img src="{_data_uri(picture)}" alt="{name}, in the middle" width={_CLOSE_UP_PX}>'
        f"<figcaption><b>{name}</b><br><span>{' · '.join(facts)}</span><p>{said}</p></figcaption></figure>"
    )


def _made_by(slide: Slide, run: Mapping[str, Any], origin: Origin) -> list[tuple[str, str]]:
    rows = [
        ("slide", _file_name(slide.source)),
        ("slide fingerprint", slide.fingerprint),
        ("read by", f"{slide.backend} ({slide.vendor})"),
        ("0,0 of the coordinates", "the corner of the whole slide" if origin == "slide" else "as in QuPath"),
        ("report by wsiseg", __version__),
    ]
    return rows + [row for key, value in run.items() if key != "origin" for row in _flat(f"outlines: {key}", value)]


def _file_name(source: str) -> str:
    """The last part of a path or URL: folders name patients, and what follows the "?" of a URL may open it."""
    if "://" in source:
        source = source.partition("?")[0]
    return source.replace("\\", "/").rpartition("/")[2]


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A JSON value as rows of a table, one for each leaf; lists of numbers in one line."""
    if isinstance(value, dict):
        for key, item in value.items():
            is_path = key in _PATHS and isinstance(item, str)
            yield from _flat(f"{name} · {key}", _file_name(item) if is_path else item)
    elif isinstance(value, list) and any(isinstance(item, dict if len(value) == 1 else dict | str) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _flat(f"{name} · {number}", item)
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, str(value)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows)
    return f"<table>{lines}</table>"


def _data_uri(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.convert("RGB").save(encoded, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · wsiseg report</title><style>{style}</style></head><body><main>
"""

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#dcdde3, #3a3d46); --muted: light-dark(#5d606b, #9a9eab); }
body { margin: 0; font: 14px/1.5 system-ui, sans-serif; background: light-dark(#fff, #1b1c21);
  color: light-dark(#1b1c21, #e7e8ec); }
main { max-width: 1100px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 16px; margin: 34px 0 10px; }
header p, .note, figcaption span { color: var(--muted); margin: 2px 0; }
.overview { display: block; max-width: 100%; max-height: 90vh; margin: 18px 0; border-radius: 6px;
  border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 400; color: var(--muted); }
.figures th, .figures td + td { overflow-wrap: normal; }
.figures th + th, .figures td + td { text-align: right; }
.figures td + td:not(:last-child) { white-space: nowrap; }
h2 { break-after: avoid; }
td i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 24px; }
figure { margin: 0; break-inside: avoid; } figure img { display: block; width: 100%; border-radius: 6px; }
figcaption { padding-top: 6px; overflow-wrap: anywhere; } figcaption p { margin: 4px 0 0; white-space: pre-wrap; }
svg { width: 100%; } svg text { font-size: 10.5px; fill: var(--muted); } svg line { stroke: var(--line); }
"""
