"""Which product is shown from when to when: the likeliest path through a hidden Markov model of the sampled frames.

The states are a gallery's products and, if the index has a calibration, "none". The evidence follows the calibration: a
clip of n frames whose cosine with image g is s_g gives the image the weight exp(scale · s_g), and "none" the weight
that an image at the threshold would have, exp(scale · threshold). The threshold is the largest cosine at which it is as
likely as not that an image is shown. A product has the pooled weight of its images (`pooling.pool`), without what
several images add to it in clips that do not show it (`pooling.inflation`).

Since s_g is a mean over the clip's frames, one frame contributes f · g / |mean of the features of the n frames around
it|. The frames of a clip are not independent, so all n of them together weigh as much as one clip: each contribution is
multiplied by scale / n, and compared with scale / n times the threshold. Both are multiplied by `FRAME_WEIGHT`. A state
lasts `MEAN_SECONDS` on average; then any other state follows, each as likely.

The path gives the start and end of each product, and where there is none, but not a confidence: its posterior would
treat the frames as more independent than they are. Confidences come from the calibration, applied to the frames of a
segment as one clip (`recognizer.products_over_time`).

What is said in the clip around a frame adds the weighted cosine of speech and title to s_g, and the same to the frame's
contribution.

Scores by frames (`eval.scores`) name a segment's product, but have no part in the evidence: the largest over a clip's
frames is no sum over the frames.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rice_jax.eval.pooling import Pooling

MEAN_SECONDS = 15.0  # mean time that a product is shown without a break; results hardly depend on it
# Weight of a frame's evidence, relative to 1/n of a clip's. With 1, a product that is shown for seconds never outweighs
# the two changes of state that it costs. Chosen on simulated films of products that the encoder was trained on, where 3
# to 5 give the same results.
FRAME_WEIGHT = 4.0


class Span(NamedTuple):
    """A stretch of time in one state."""

    start: float  # seconds
    end: float
    product: int | None  # place among the gallery's products; None = none of them
    frames: slice  # of the sampled frames


def timeline(
    features: Float[np.ndarray, "T E"],
    times: Float[np.ndarray, " T"],
    vectors: Float[np.ndarray, "G E"],
    scale: float,
    none: float | None,
    *,
    num_frames: int,
    end: float,
    pooling: Pooling | None = None,
    said: Float[np.ndarray, "T G"] | None = None,
    mean_seconds: float = MEAN_SECONDS,
    frame_weight: float = FRAME_WEIGHT,
) -> list[Span]:
    """Divides a video into spans of one product each.

    Memory grows with T · G.

    Args:
        features: features of the sampled frames, not normalized.
        times: times of the frames, ascending, in seconds.
        vectors: embeddings of the gallery's images, unit length, at least one; those of a product are neighbors.
        scale: the calibration's scale.
        none: the calibration's scale times its threshold; None = there is no state "none".
        num_frames: number of frames of a clip in the calibration.
        end: when the last frame ends, in seconds; any other frame lasts until half-way to the next.
        pooling: of the products' images; None = each image is a product of its own.
        said: what is said in the clip around each frame adds this to the cosines; None = nothing.
        mean_seconds: mean time that a product is shown.
        frame_weight: weight of a frame's evidence.

    Returns:
        Spans without gaps, from the first frame to the end of the last one; neighbors have different products.
    """
    evidence = _evidence(features, vectors, scale, num_frames, frame_weight, pooling, said)
    num_products = evidence.shape[1]
    if none is not None:
        evidence = np.pad(evidence, ((0, 0), (0, 1)), constant_values=none * frame_weight / num_frames)
    path = _likeliest_path(evidence, np.diff(times) / mean_seconds)
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    edges = [times[0], *(times[starts[1:] - 1] + times[starts[1:]]) / 2, end]
    spans = []
    for place, (first, end) in enumerate(zip(starts, [*starts[1:], len(path)], strict=True)):
        product = int(path[first]) if path[first] < num_products else None
        spans.append(Span(float(edges[place]), float(edges[place + 1]), product, slice(int(first), int(end))))
    return spans


def _evidence(
    features: Float[np.ndarray, "T E"],
    vectors: Float[np.ndarray, "G E"],
    scale: float,
    num_frames: int,
    frame_weight: float,
    pooling: Pooling | None,
    said: Float[np.ndarray, "T G"] | None,
) -> Float[np.ndarray, "T P"]:
    """Log-likelihood of each frame if a product is shown, up to a constant per frame."""
    sums = np.concatenate([np.zeros_like(features[:1], np.float64), np.cumsum(features, axis=0, dtype=np.float64)])
    places = np.arange(len(features))
    first, last = np.maximum(places - num_frames // 2, 0), np.minimum(places + (num_frames + 1) // 2, len(features))
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    lengths, weight = np.linalg.norm(means, axis=1, keepdims=True), scale * frame_weight / num_frames
    scaled = features * (weight / lengths)
    evidence = np.asarray(scaled, np.float32) @ vectors.T
    if said is not None:
        evidence += weight * said
    if pooling is None or len(pooling.edges) > len(vectors):
        return evidence
    # The best image is that of the frames around, as in a clip: chosen for each frame anew, it would fit its noise, and
    # products with many images would be named too often.
    around = np.asarray(means / lengths, np.float32) @ vectors.T
    if said is not None:
        around += said
    best = np.stack(
        [first + around[:, first:end].argmax(axis=1) for first, end in itertools.pairwise(pooling.edges)], axis=1
    )
    added = pooling.cosines(around) - np.take_along_axis(around, best, axis=1)
    return np.take_along_axis(evidence, best, axis=1) + weight * added


def _likeliest_path(evidence: Float[np.ndarray, "T S"], gaps: Float[np.ndarray, " T1"]) -> Int[np.ndarray, " T"]:
    """The likeliest sequence of states (Viterbi). Any state may follow any other, so a step costs O(S), not O(S²).

    Args:
        evidence: of each frame for each state.
        gaps: times between neighbors, in mean durations of a state.
    """
    best = evidence[0].astype(np.float64)
    from_best: list[
        tuple[int, Bool[np.ndarray, " S"]]
    ] = []  # for each later frame: the best state before it, and which states it replaces
    for here, gap in zip(evidence[1:], gaps, strict=True):
        leader = int(best.argmax())
        stays = best - gap  # the logarithm of a probability of exp(-gap)
        moved = best[leader] + np.log(-np.expm1(-gap) / (len(best) - 1)) if gap > 0 and len(best) > 1 else -np.inf
        from_best.append((leader, moved > stays))
        best = np.maximum(stays, moved) + here
    path = [int(best.argmax())]
    for leader, moved in reversed(from_best):
        path.append(leader if moved[path[-1]] else path[-1])
    return np.array(path[::-1])
