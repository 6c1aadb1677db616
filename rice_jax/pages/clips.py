"""The evaluation of a shop's own clips, as plain text and as a page."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rice_jax.files import write_lines
from rice_jax.pages.album import Pictures, Thumbnail, thumbnail
from rice_jax.pages.plots import Curve, Plot, lines
from rice_jax.pages.report import MAX_CHARACTERS, render
from rice_jax.pages.tables import align
from rice_jax.types import counted

NUM_SHOWN = 60  # clips on the page
WIDTH = 100  # of the text, characters


def clip_tables(found: Mapping[str, Any]) -> str:
    """Tabulates an evaluation of clips in lines of at most 100 columns, without a newline at the end.

    Args:
        found: of `clips.evaluation.document`.
    """
    cutoffs = list(found["results"][0]["score"]["rank"])
    over = found["results"][0]["score"]["interval_over"]
    differences = [""] * len(cutoffs)
    ranks = [["chance", *(_percent(share) for share in found["results"][0]["score"]["chance"].values())]]
    ranks += [[row_name(result), *_shares(result["score"])] for result in found["results"]]
    for name, gain in (found.get("difference") or {}).items():
        low, high = (100 * end for end in gain["ends"])
        interval = f" ({low:+.0f}..{high:+.0f})" if low < high else ""
        differences[cutoffs.index(name)] = f"{100 * gain['mean']:+.1f}{interval}"
    if any(differences):
        ranks.append(["difference", *differences])
    named = [[row_name(result), *_counts(result["naming"])] for result in found["results"]]
    if found["suggested"]:
        named.append([threshold(found["suggested"]), *_counts(found["suggested"])])
    return "\n".join(
        [
            summary(found["about"]),
            "",
            *align(["", *cutoffs], ranks),
            "",
            *align(["", "right", "wrong", "silent", "rightly silent", "wrong names"], named),
            "",
            f"95 % confidence intervals: bootstrapped over {over}, none where all agree; of wrong names, binomial.",
            textwrap.fill(suggestion(found), WIDTH, break_on_hyphens=False),
        ]
    )


def summary(about: Mapping[str, Any]) -> str:
    """What was evaluated, in a line."""
    of = "it" if about["num_clips"] == about["num_none"] == 1 else "them"
    none = f", {about['num_none']:,} of {of} without a product of the shop" if about["num_none"] else ""
    unusable = f"; {about['num_unusable']:,} more cannot be used" if about["num_unusable"] else ""
    clips, films, products = (counted(about[f"num_{noun}s"], noun) for noun in ("clip", "film", "product"))
    return f"{clips} of {films}{none}; {products}{unusable}"


def row_name(result: Mapping[str, Any]) -> str:
    """The name of a result's row in tables."""
    return f"{result['name']}, by {result['ranked_by']}"


def threshold(suggested: Mapping[str, Any]) -> str:
    """The flag that sets the suggested threshold, with all digits: a rounded one may name other clips."""
    return f"--min_confidence={suggested['min_confidence']}"


def suggestion(found: Mapping[str, Any]) -> str:
    """The threshold that keeps wrong names rare enough, in a sentence."""
    most = _percent(found["about"]["max_wrong"])
    if suggested := found["suggested"]:
        num_names = suggested["right"] + suggested["wrong"]
        are = "is" if num_names == 1 else "are"
        return (
            f"With {threshold(suggested)}, {num_names:,} of these clips {are} named, "
            f"{suggested['wrong']:,} of them wrongly (limit: {most})."
        )
    if not found["curve"]:
        return "Without a calibration there are no confidences, so no threshold can be suggested."
    return f"No threshold gives at most {most} of wrong names on these clips."


def write_clips_page(
    path: str | os.PathLike, found: Mapping[str, Any], pictures: Mapping[tuple[str, str], str]
) -> None:
    """Writes the page of an evaluation, whole or not at all.

    Args:
        path: of the page.
        found: of `clips.evaluation.document`.
        pictures: {(gallery, id of a product): path of its picture}; those that are gone are left out.

    Raises:
        OSError: the file cannot be written.
    """
    album = Pictures()

    homes = {product: gallery for gallery, product in reversed(list(pictures))}  # the first gallery that has it

    def image(gallery: str, product: str) -> Thumbnail | None:
        key = (gallery, product) if (gallery, product) in pictures else (homes.get(product, ""), product)
        if key not in pictures or album.num_characters > MAX_CHARACTERS:
            return None
        try:
            return album.add(("image", key), lambda: thumbnail(Path(pictures[key])))
        except OSError:
            return None

    wrong = [clip for clip in found["clips"] if clip["named"] and clip["best"] != clip["product"]]
    silent = [clip for clip in found["clips"] if not clip["named"] and clip["product"]]
    surest = lambda clips: sorted(clips, key=lambda clip: -(clip["confidence"] or 0))  # noqa: E731
    groups = [
        (title, len(clips), [_card(clip, image) for clip in surest(clips)[:NUM_SHOWN]])
        for title, clips in (("Named wrongly", wrong), ("Not named", silent))
    ]
    page = render(
        "clips.html.jinja",
        album,
        summary=summary(found["about"]),
        suggestion=suggestion(found),
        about=found["about"],
        results=[result | {"name": row_name(result)} for result in found["results"]],
        suggested=found["suggested"],
        threshold=threshold(found["suggested"]) if found["suggested"] else "",
        difference=found.get("difference"),
        cutoffs=list(found["results"][0]["score"]["rank"]),
        plot=_plot(found["curve"]) if found["curve"] else None,
        groups=groups,
    )
    write_lines(path, [page])


def _card(clip: Mapping[str, Any], image: Any) -> dict[str, Any]:
    return dict(clip) | {"true": image(clip["gallery"], clip["product"]), "found": image(clip["gallery"], clip["best"])}


def _plot(curve: Sequence[Mapping[str, Any]]) -> Plot:
    """The shares of the clips over the least confidence; each point holds until the next."""
    total = sum(curve[0][name] for name in ("right", "wrong", "silent", "none"))
    x = [edge for point in curve for edge in (point["min_confidence"],) * 2][1:] + [1.0]
    share = lambda *names: [sum(point[name] for name in names) / total for point in curve for _ in range(2)]  # noqa: E731
    curves = {"named rightly": Curve(x, share("right")), "named wrongly": Curve(x, share("wrong"))}
    curves["not named"] = Curve(x, share("silent", "none"), dashed=True)
    return lines("Clips by the least confidence of a name", curves, xlabel="--min_confidence", percent=True)


def _shares(score: Mapping[str, Any]) -> list[str]:
    ends = score["interval"]
    intervals = {name: f" ({100 * low:.0f}-{100 * high:.0f})" for name, (low, high) in ends.items() if low < high}
    return [_percent(share) + intervals.get(name, "") for name, share in score["rank"].items()]


def _counts(naming: Mapping[str, Any]) -> list[str]:
    ends = naming["wrong_interval"]
    interval = f" ({100 * ends[0]:.0f}-{100 * ends[1]:.0f})" if ends else ""
    counts = [f"{naming[name]:,}" for name in ("right", "wrong", "silent", "none")]
    return [*counts, f"{_percent(naming['wrong_share'])}{interval}"]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
