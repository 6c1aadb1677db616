"""Plots for a page, as SVG that takes its text's colour from the page, so that it can be read in light and in dark."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# matplotlib, a sixth of the program's start, is imported where it is used: most runs draw only at their end.

# Of middle brightness: told apart on white and on black.
COLOURS = ("#3f87f5", "#e8760a", "#1ea97c", "#ab6bf2", "#d94a7a", "#8f8a00", "#0aa2c0", "#8a8f98")
_TEXT = "#010203"  # stands for the page's own colour
_STYLE = {
    "svg.fonttype": "none",  # the browser's fonts, which know every script
    "svg.hashsalt": "rice_jax",  # the same plot is the same text
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
    """Points of a plot, joined."""

    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False  # few points, of which each counts
    dashed: bool = False


class Plot(NamedTuple):
    """A plot and what its colours mean; the names are not in the SVG, the page has to escape them."""

    title: str
    svg: str
    legend: list[tuple[str, str]]  # name and colour


def lines(
    title: str,
    curves: Mapping[str, Curve],
    *,
    xlabel: str,
    percent: bool = False,
    places: Sequence[int] | None = None,
) -> Plot:
    """Draws curves into one plot.

    Args:
        title: of the plot.
        curves: {name: its points}, at least one.
        xlabel: of the horizontal axis.
        percent: y is a share in 0..1, drawn from 0 to 100 %.
        places: marks of a logarithmic horizontal axis; None = a linear one.
    """
    import matplotlib
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(xlabel)
        for curve, colour in zip(curves.values(), _colours(len(curves)), strict=True):
            style = dict(marker="o" if curve.marked else "", markersize=3.5, linestyle="--" if curve.dashed else "-")
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, **style)
        if percent:
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if places:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        return Plot(title, _svg(figure), list(zip(curves, _colours(len(curves)), strict=True)))


def histogram(title: str, groups: Mapping[str, Sequence[float]], *, xlabel: str, num_bins: int = 30) -> Plot:
    """Draws how the values of each group are distributed, every group's area being one.

    Args:
        title: of the plot.
        groups: {name: its values}; a group without values is left out.
        xlabel: of the horizontal axis.
        num_bins: of all groups together.
    """
    import matplotlib
    from matplotlib.ticker import NullLocator

    groups = {name: values for name, values in groups.items() if len(values)}
    everything = [value for values in groups.values() for value in values]
    span = (min(everything), max(everything)) if min(everything) < max(everything) else None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(xlabel)
        for values, colour in zip(groups.values(), _colours(len(groups)), strict=True):
            shape = dict(bins=num_bins, range=span, density=True, histtype="stepfilled")
            axes.hist(values, **shape, color=colour, alpha=0.35)
            axes.hist(values, **{**shape, "histtype": "step"}, color=colour, linewidth=1.4)
        axes.yaxis.set_major_locator(NullLocator())
        return Plot(title, _svg(figure), list(zip(groups, _colours(len(groups)), strict=True)))


def _figure(xlabel: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3, 2.7), layout="constrained")  # narrow, so that a phone need not shrink it much
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    return figure, axes


def _colours(num: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(num)]


def _svg(figure) -> str:
    """The element alone; without a date, so that equal runs write equal pages."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
