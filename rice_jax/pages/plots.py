"""Plots as SVG for a page, with text in the page's color so that they are readable in light and dark mode."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# matplotlib takes a sixth of the program's start and most runs draw only at their end, so functions import it.

# Of medium brightness, to be distinct on white and on black.
COLORS = ("#3f87f5", "#e8760a", "#1ea97c", "#ab6bf2", "#d94a7a", "#8f8a00", "#0aa2c0", "#8a8f98")
_TEXT = "#010203"  # stands for the page's own color
_STYLE: Any = {  # matplotlib types it by the names that it knows
    "svg.fonttype": "none",  # text in the browser's fonts, which cover every script
    "svg.hashsalt": "rice_jax",  # equal plots are equal SVG
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _TEXT
    ),
}


class Curve(NamedTuple):
    """Points of a plot, joined by lines."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    marked: bool = False  # draw the points, too
    dashed: bool = False


class Plot(NamedTuple):
    """A plot and its legend, whose names are not in the SVG: the page escapes them."""

    title: str
    svg: str
    legend: list[tuple[str, str]]  # name and color


def lines(
    title: str,
    curves: Mapping[str, Curve],
    *,
    xlabel: str,
    percent: bool = False,
    places: Sequence[int] | None = None,
) -> Plot:
    """Draws curves in one plot.

    Args:
        title: of the plot.
        curves: {name: its points}, at least one.
        xlabel: of the horizontal axis.
        percent: y is a share, 0 to 1, drawn as 0 to 100 %.
        places: ticks of a logarithmic horizontal axis; None = a linear axis.
    """
    import matplotlib
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(xlabel)
        for curve, color in zip(curves.values(), _colors(len(curves)), strict=True):
            style = dict(marker="o" if curve.marked else "", markersize=3.5, linestyle="--" if curve.dashed else "-")
            axes.plot(curve.x, curve.y, color=color, linewidth=1.6, **style)
        if percent:
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if places:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        return Plot(title, _svg(figure), list(zip(curves, _colors(len(curves)), strict=True)))


def histogram(title: str, groups: Mapping[str, Sequence[float]], *, xlabel: str, num_bins: int = 30) -> Plot:
    """Draws a histogram of each group in one plot; the area of each is 1.

    Args:
        title: of the plot.
        groups: {name: its values}; a group without values is left out.
        xlabel: of the horizontal axis.
        num_bins: over the range of all groups.
    """
    import matplotlib
    from matplotlib.ticker import NullLocator

    groups = {name: values for name, values in groups.items() if len(values)}
    everything = [value for values in groups.values() for value in values]
    span = (min(everything), max(everything)) if min(everything) < max(everything) else None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(xlabel)
        for values, color in zip(groups.values(), _colors(len(groups)), strict=True):
            shape = dict(bins=num_bins, range=span, density=True, histtype="stepfilled")
            axes.hist(values, **shape, color=color, alpha=0.35)
            axes.hist(values, **{**shape, "histtype": "step"}, color=color, linewidth=1.4)
        axes.yaxis.set_major_locator(NullLocator())
        return Plot(title, _svg(figure), list(zip(groups, _colors(len(groups)), strict=True)))


def _figure(xlabel: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3, 2.7), layout="constrained")  # narrow, so that a phone hardly shrinks it
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    return figure, axes


def _colors(num: int) -> list[str]:
    return [COLORS[place % len(COLORS)] for place in range(num)]


def _svg(figure) -> str:
    """The SVG element, without a date so that equal runs write equal pages."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
