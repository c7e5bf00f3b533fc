"""The figures of a report: curves as SVG that take the page's colours, and pictures of clips as JPEG.

Matplotlib is given placeholder colours, which become CSS variables of the page: `--ink`, `--soft`, `--line`,
`--accent` and `--c0` to `--c9`. Legends are left to the page, which can wrap and escape them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.errors import EdgeclfError, import_extra
from edgeclf.metrics import Curve, Floats, Reliability
from edgeclf.video import RgbImage, VideoSource, open_video

SERIES = 10  # colours that can be told apart

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "val_loss")),
    ("accuracy", ("accuracy", "val_accuracy")),
    ("learning rate", ("learning_rate",)),
)
_RECALLS = np.linspace(0, 1, 101)  # where curves of several classes are averaged
_INK, _SOFT, _LINE, _ACCENT = "#010101", "#010102", "#010103", "#010104"
_NAMES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _ACCENT: "accent"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeclf",
    "font.size": 9,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.4,
    "lines.solid_joinstyle": "round",
}


# -- curves -----------------------------------------------------------------------------------------------------------


def precision_recall_figure(curves: Sequence[Curve], mean: Floats) -> str:
    """An SVG of up to `SERIES` curves in colours 0, 1, ... and of the mean precision at `mean_precision`'s recalls."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
        for number, curve in enumerate(curves[:SERIES]):
            axes.step(*_staircase(curve), where="pre", color=_series(number))
        axes.plot(_RECALLS, mean, color=_INK, linewidth=2.2)

    return _svg((5.4, 3.7), draw)


def mean_precision(curves: Iterable[Curve]) -> Floats:
    """(101,) the mean over curves of the best precision at a recall of 0, 0.01, ... 1 or more."""
    rows = [curve.precision_at(_RECALLS) for curve in curves]
    found: Floats = np.mean(rows, axis=0) if rows else np.zeros(len(_RECALLS))
    return found


def reliability_figure(bins: Reliability, without: Reliability | None = None) -> str:
    """An SVG of accuracy over score as bars, of `without` temperature as a line, and of how many clips there are."""

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.03))
        lower.set(xlabel="score of the label found", ylabel="clips")
        count = len(bins.counts)
        middles, width = (np.arange(count) + 0.5) / count, 0.86 / count
        full = bins.counts > 0
        upper.bar(middles[full], bins.accuracy[full], width, color=_ACCENT, alpha=0.75)
        upper.plot((0, 1), (0, 1), color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
        if without is not None:
            seen = without.counts > 0
            upper.plot(without.confidence[seen], without.accuracy[seen], color=_series(1), marker="o", markersize=4)
        lower.bar(middles, bins.counts, width, color=_SOFT, alpha=0.6)
        lower.yaxis.set_major_locator(_whole_numbers(2))

    return _svg((5.4, 3.7), draw)


def history_figure(history: Sequence[Mapping[str, float]]) -> str:
    """An SVG of loss and accuracy of both splits and, where it is known, the learning rate, by epoch."""
    epochs = [row.get("epoch", number) for number, row in enumerate(history, start=1)]
    known = {key for row in history for key in row}
    shown = [(title, keys) for title, keys in _PANELS if known & set(keys)]

    def draw(figure: Any) -> None:
        for axes, (title, keys) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(_whole_numbers(6))
            for key in keys:
                values = np.array([row.get(key, math.nan) for row in history], np.float64)
                color = _series(1) if key.startswith("val_") else _ACCENT
                axes.plot(epochs, values, color=color, marker="o" if len(history) == 1 else None)
                if key == "learning_rate" and (values > 0).all():
                    axes.set_yscale("log")
            _mark_best(axes, keys, epochs, history)

    return _svg((2.9 * len(shown), 2.5), draw) if shown else ""


def _mark_best(axes: Any, keys: Sequence[str], epochs: Sequence[float], history: Sequence[Mapping[str, float]]) -> None:
    """A line at the epoch of the lowest validation loss, in the panel of the loss."""
    losses = [row.get("val_loss", math.nan) for row in history]
    if "val_loss" in keys and not all(math.isnan(loss) for loss in losses):
        axes.axvline(epochs[int(np.nanargmin(losses))], color=_SOFT, linewidth=0.8, linestyle=(0, (2, 2)))


def _staircase(curve: Curve) -> tuple[Floats, Floats]:
    corners = curve.corners()
    if not len(corners.recall):
        return np.zeros(1), np.zeros(1)
    return np.append(0.0, corners.recall), np.append(corners.precision[0], corners.precision)


def _series(number: int) -> str:
    return f"#0102{number:02x}"


def _whole_numbers(count: int) -> Any:
    return import_extra("matplotlib.ticker", "Matplotlib", "train").MaxNLocator(count, integer=True)


def _svg(inches: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """What `draw` puts into a figure, as an SVG element that fills the width of its place."""
    matplotlib = import_extra("matplotlib", "Matplotlib", "train")
    figures = import_extra("matplotlib.figure", "Matplotlib", "train")
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=inches, layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _in_page_colours(text.getvalue())


def _in_page_colours(svg: str) -> str:
    """The SVG element alone, in the page's colours and font, with no style or name that reaches beyond it."""
    head, _, body = svg[svg.index("<svg") :].partition(">")
    head = re.sub(r' (width|height|version|xmlns(:\w+)?)="[^"]*"', "", head)
    body = re.sub(r"<style.*?</style>|(?<=<g) id=\"[^\"]*\"|font-family: [^;\"]*;", "", body, flags=re.DOTALL)
    body = re.sub(r"#0102(\d\d)", lambda found: f"var(--c{int(found[1], 16)})", body.replace("xlink:href", "href"))
    for placeholder, name in _NAMES.items():
        body = body.replace(placeholder, f"var(--{name})")
    return f"{head}>{body}".strip()


# -- pictures ---------------------------------------------------------------------------------------------------------


def thumbnails(source: Path | VideoSource, count: int = 6, side: int = 160) -> tuple[list[bytes], str]:
    """Up to `count` JPEGs evenly spread over a clip, and what was wrong with it, or nothing.

    side: of the longer side of a picture, in pixels. The clip is read once, however long it is, and never more
    than a few dozen small pictures are held.
    """
    kept: list[RgbImage] = []
    stride, problem = 1, ""
    try:
        with closing(open_video(source) if isinstance(source, Path) else source) as opened:
            for index, frame in enumerate(opened.frames()):
                if index % stride == 0:
                    kept.append(_small(frame.image, side))
                if len(kept) == 8 * count:
                    kept, stride = kept[::2], 2 * stride
    except EdgeclfError as error:
        problem = f"{error.kind}: {error}"
    places = np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int)
    return [_jpeg(kept[place]) for place in places], problem


def _small(image: RgbImage, side: int) -> RgbImage:
    cv2 = import_extra("cv2", "OpenCV", "cpu")
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    found: RgbImage = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return found


def _jpeg(image: RgbImage) -> bytes:
    cv2 = import_extra("cv2", "OpenCV", "cpu")
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), (cv2.IMWRITE_JPEG_QUALITY, 82))
    return bytes(encoded)
