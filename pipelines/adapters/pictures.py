"""Pictures of an evaluation, drawn by Matplotlib without a display. Equal figures give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.core.ports import Mistake
from pipelines.core.preprocessing import decode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
_MAX_WRITTEN_CLASSES = 24
"""With more classes, cells are too small for their counts."""
_MAX_NAMED_CLASSES = 60
_MAX_NAME_CHARS = 18
_COLUMNS = 6


class MatplotlibPictures:
    """Fulfils `core.ports.Pictures`."""

    def confusion(self, path: Path, counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> None:
        """Colour is the share of the true class, so that rare classes show as well, on a scale of square roots, so that
        rare confusions do; the numbers are images."""
        from matplotlib.colors import PowerNorm

        table = np.array(counts, dtype=np.int64)
        totals = table.sum(axis=1, keepdims=True)
        shares = np.divide(table, totals, out=np.zeros(table.shape), where=totals > 0)
        num_classes = len(class_names)
        side = min(16.0, max(4.5, 2.2 + 0.45 * num_classes))
        figure = _figure(side + 0.9, side)
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        if num_classes <= _MAX_NAMED_CLASSES:
            names = [_short(name) for name in class_names]
            size = 9 if num_classes <= _MAX_WRITTEN_CLASSES else 6
            axes.set_xticks(range(num_classes), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
            axes.set_yticks(range(num_classes), names, fontsize=size)
        if num_classes <= _MAX_WRITTEN_CLASSES:
            for row, column in zip(*np.nonzero(table), strict=True):
                colour = "white" if shares[row, column] > 0.3 else "#222222"
                axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
        num_images, num_right = int(table.sum()), int(np.trace(table))
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"{num_right:,} of {num_images:,} test images right", fontsize=11)
        figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
        _save(figure, path)

    def mistakes(self, path: Path, mistakes: Sequence[Mistake], images: Sequence[bytes], *, num_mistakes: int) -> None:
        """A grid with what the model said above what the image is. Without any mistake the picture says so."""
        num_columns = min(_COLUMNS, max(1, len(mistakes)))
        num_rows = max(1, -(-len(mistakes) // num_columns))
        figure = _figure(max(3.5, 1.75 * num_columns), 0.7 + 2.45 * num_rows)
        if not mistakes:
            figure.text(0.5, 0.5, "No mistakes on the test images", ha="center", va="center", fontsize=14)
            _save(figure, path)
            return
        which = (
            "All mistakes"
            if len(mistakes) == num_mistakes
            else f"The {len(mistakes)} surest of {num_mistakes:,} mistakes"
        )
        figure.suptitle(f"{which} on the test images, surest first", fontsize=11)
        grid = figure.subplots(num_rows, num_columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, mistake, data in zip(grid.flat, mistakes, images, strict=False):
            _draw_mistake(axes, mistake, data)
        _save(figure, path)


def _draw_mistake(axes: Axes, mistake: Mistake, data: bytes) -> None:
    image = decode(data, at_least=(160, 160)).image
    axes.imshow(np.asarray(image), interpolation="nearest" if max(image.size) < 100 else "antialiased")
    axes.set_title(
        f"{_short(mistake.predicted_class)} {100 * mistake.probability:.0f}%\n"
        f"is {_short(mistake.true_class)} ({100 * mistake.true_probability:.0f}%)",
        fontsize=8,
        color="#a01010",
    )


def _short(name: str) -> str:
    # A dollar would start Matplotlib's formulas.
    plain = name.replace("$", r"\$")
    return plain if len(plain) <= _MAX_NAME_CHARS else f"{plain[: _MAX_NAME_CHARS - 1]}…"


def _figure(width_in: float, height_in: float) -> Figure:
    # The object-oriented API: pyplot would keep figures alive and choose a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    # No software version and no date in the file: its digest is part of the result's.
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(path, format="png", metadata=metadata)
