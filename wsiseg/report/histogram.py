"""A histogram as inline SVG."""

from __future__ import annotations

import numpy as np

_WIDTH, _HEIGHT, _BASE, _TOP = 340, 142, 104, 16
_BINS = 24


def histogram_svg(values: np.ndarray, unit: str, color: tuple[int, int, int], label: str) -> str:
    """Bars over logarithmic classes of the positive `values` (n,), n at least 1; `label` is escaped by the caller."""
    low, high = np.log10(values.min()), np.log10(values.max())
    if high - low < 0.2:  # nearly all the same: one bar in the middle, not a comb of rounding errors
        low, high = low - 0.1, high + 0.1
    counts, edges = np.histogram(np.log10(values), _BINS, (low, high))
    step = _WIDTH / _BINS
    heights = counts / counts.max() * (_BASE - _TOP)
    bars = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{_BASE - h:.1f}" width="{step - 1:.1f}" height="{h:.1f}">'
        f"<title>{short(10 ** edges[i])} to {short(10 ** edges[i + 1])} {unit}: {counts[i]:,}</title></rect>"
        for i, h in enumerate(heights.tolist())
        if counts[i]
    )
    ticks = "".join(
        f'<text x="{x * _WIDTH:.1f}" y="{_BASE + 16}" text-anchor="{anchor}">'
        f"{short(10 ** (low + x * (high - low)))}</text>"
        for x, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'<g fill="rgb({color[0]} {color[1]} {color[2]})">{bars}</g>'
        f'<line x1="0" x2="{_WIDTH}" y1="{_BASE}" y2="{_BASE}"/>{ticks}'
        f'<text x="0" y="10">{counts.max():,}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{unit}, logarithmic</text></svg>'
    )


def short(value: float) -> str:
    """Three digits, in full: 0.0123, 12.3, 1,230."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"
