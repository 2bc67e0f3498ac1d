"""The probability of one class over a whole slide, on disk, whatever the slide's size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsiseg.errors import OutputError
from wsiseg.files import no_room
from wsiseg.mask.blend import RollingBand

if TYPE_CHECKING:
    from wsiseg.tiles import Grid

_BAND_ROWS = 256


class Canvas:
    """Blended tiles as uint8 (probability · 255, rounded), in an anonymous sparse file of m_height rows.

    It spans the m_width columns from m_left on, in which all tiles lie: tissue may be a small part of a wide slide.

    Tiles come in row-major order (y, then x), as a grid lists them. A row is written once, when no later tile
    can touch it; where no tile spoke nothing is written and the probability is 0. In memory there is one
    tile's height of the slide's width. The file has no name (on POSIX), so that it vanishes with the process,
    however that ends.

        with Canvas.over(grid) as canvas:
            for (m_x, m_y), probability in ...:
                canvas.add(m_x, m_y, probability)
            canvas.finish()
            found = regions(canvas, grid)

    Raises:
        OutputError: the temporary folder is unwritable or full.
    """

    def __init__(
        self,
        m_width: int,
        m_height: int,
        tile_size: int,
        overlap: int,
        folder: Path | None = None,
        *,
        m_left: int = 0,
    ) -> None:
        self.m_left = m_left
        self.m_width = m_width
        self.m_height = m_height
        self._folder = folder or Path(tempfile.gettempdir())
        self._band = RollingBand(m_width, tile_size, overlap)
        self._written = np.zeros(-(-m_height // _BAND_ROWS), bool)  # which bands of rows hold anything
        try:
            self._file = tempfile.TemporaryFile(prefix="wsiseg-canvas-", dir=self._folder)  # noqa: SIM115
            self._file.truncate(m_width * m_height)
        except OSError as error:
            raise self._full(error) from error

    @classmethod
    def over(cls, grid: Grid) -> Canvas:
        """For the tiles of a grid."""
        spec, m_x = grid.spec, grid.m_xy[:, 0]
        m_left = max(int(m_x.min(initial=grid.m_width - 1)), 0)
        m_right = min(int(m_x.max(initial=0)) + spec.tile_size, grid.m_width)
        return cls(max(m_right - m_left, 1), grid.m_height, spec.tile_size, spec.overlap, m_left=m_left)

    def __enter__(self) -> Canvas:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, m_x: int, m_y: int, probability: np.ndarray | None) -> None:
        """Blend in the tile whose top-left corner is (m_x, m_y).

        `probability` is (tile_size, tile_size) in [0, 1]. None, a tile in which the model found nothing,
        counts as probability 0 with the tile's full weight. A tile may hang over the edges.
        """
        self._flush(max(m_y, 0))
        self._band.add(m_x - self.m_left, m_y, probability)

    def finish(self) -> None:
        """Write the rows still in memory; no tile may follow."""
        self._flush(self.m_height)

    def bands(self, m_top: int = 0, m_bottom: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The finished canvas from top to bottom: (m_y0, (h, m_width) uint8), from column m_left on. Bands of zeros are
        left out, and those outside the rows m_top to m_bottom."""
        m_tops = np.flatnonzero(self._written) * _BAND_ROWS
        within = m_tops + _BAND_ROWS > m_top
        if m_bottom is not None:
            within &= m_tops < m_bottom
        for m_y0 in m_tops[within].tolist():
            band = np.empty((min(_BAND_ROWS, self.m_height - m_y0), self.m_width), np.uint8)
            self._file.seek(m_y0 * self.m_width)
            self._file.readinto(band)  # type: ignore[attr-defined]
            yield m_y0, band

    def window(self, m_x: int, m_y: int, width: int, height: int) -> np.ndarray:
        """A piece of the finished canvas: (height, width) uint8, 0 outside the slide."""
        piece = np.zeros((height, width), np.uint8)
        m_x -= self.m_left
        x0, x1 = max(m_x, 0), min(m_x + width, self.m_width)
        y0, y1 = max(m_y, 0), min(m_y + height, self.m_height)
        if x0 < x1 and y0 < y1:
            canvas = np.memmap(self._file, np.uint8, "r", shape=(self.m_height, self.m_width))
            piece[y0 - m_y : y1 - m_y, x0 - m_x : x1 - m_x] = canvas[y0:y1, x0:x1]
        return piece

    def _flush(self, m_y: int) -> None:
        for m_x0, m_y0, probability in self._band.finished(m_y):
            probability *= 255
            probability += 0.5
            values = probability.astype(np.uint8)[: max(self.m_height - m_y0, 0)]
            if values.any():
                self._write(m_x0, m_y0, values)

    def _write(self, m_x0: int, m_y0: int, values: np.ndarray) -> None:
        height, width = values.shape
        self._written[m_y0 // _BAND_ROWS : (m_y0 + height - 1) // _BAND_ROWS + 1] = True
        try:
            # Written, not mapped: on a full disk a write is an error, a mapped page is a crash (SIGBUS).
            if width == self.m_width:
                self._file.seek(m_y0 * self.m_width)
                self._file.write(values)
            else:
                for y, row in enumerate(values, m_y0):
                    self._file.seek(y * self.m_width + m_x0)
                    self._file.write(row)
            self._file.flush()
        except OSError as error:
            raise self._full(error) from error

    def _full(self, error: OSError) -> OutputError:
        return no_room("the mask", self._folder, error)
