"""Which product is shown from when to when: the likeliest path through a hidden Markov model of the sampled frames.

The states are a gallery's images and, where the index has a calibration, "none of them". Of a clip of n frames with the
cosines s_g that calibration weighs an image g by exp(scale · s_g), and "none" is what an image at its threshold would
be, exp(scale · threshold): the largest cosine at which it is as likely as not that one is shown. As s_g is a mean over
the clip's frames, one frame contributes f · g / |mean of the features of the n frames around it|; and as the frames of
a clip are no independent witnesses, all n of them weigh what one clip does: each scale / n times its contribution,
beside scale / n times the threshold, and all that times `FRAME_WEIGHT`. A state lasts `MEAN_SECONDS` on average, and
then any other follows, each as likely.

The path says where a product begins and ends, and where there is none, but not how sure that is: its posterior would
take the frames for more witnesses than they are. What says it is the calibration, of a part's frames as one clip
(`recognizer.products_over_time`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

MEAN_SECONDS = 15.0  # that a product is shown without a break; nothing depends on it closely
# Of a frame's evidence beside 1/n of a clip's. With 1 a product that is shown for seconds never outweighs the two
# changes that it needs. Chosen on simulated films of products that the encoder was trained on, where 3 to 5 do alike.
FRAME_WEIGHT = 4.0


class Segment(NamedTuple):
    start: float  # seconds
    end: float
    row: int | None  # of the gallery's vectors; None = none of them
    frames: slice  # of the sampled ones


def timeline(
    features: Float[np.ndarray, "T E"],
    times: Float[np.ndarray, " T"],
    vectors: Float[np.ndarray, "G E"],
    scale: float,
    none: float | None,
    *,
    num_frames: int,
    interval_seconds: float,
    mean_seconds: float = MEAN_SECONDS,
    frame_weight: float = FRAME_WEIGHT,
) -> list[Segment]:
    """Divides a video into segments of one product each.

    Args:
        features: of its sampled frames, not normalised.
        times: of these, ascending, in seconds.
        vectors: embeddings of the gallery's images, at unit length; at least one.
        scale: of the calibration.
        none: scale times its threshold; None = nothing is known of videos that show no product, some product is always
            shown.
        num_frames: of a clip, as the calibration means it.
        interval_seconds: how long the last frame lasts; every other one changes into the next half-way between them.
        mean_seconds: how long a product is shown on average.
        frame_weight: of the evidence of all frames.

    Returns:
        Segments without gaps from the first frame to the end of the last; neighbours differ. Memory grows with T · G.
    """
    evidence = _evidence(features, vectors, scale, none, num_frames, frame_weight)
    changes = 1 - np.exp(-np.diff(times) / mean_seconds) if evidence.shape[1] > 1 else np.zeros(len(times) - 1)
    path = _likeliest(evidence, changes)
    firsts = np.flatnonzero(np.diff(path, prepend=-1))
    edges = [times[0], *(times[firsts[1:] - 1] + times[firsts[1:]]) / 2, times[-1] + interval_seconds]
    segments = []
    for place, (first, end) in enumerate(zip(firsts, [*firsts[1:], len(path)], strict=True)):
        row = int(path[first]) if path[first] < len(vectors) else None
        segments.append(Segment(float(edges[place]), float(edges[place + 1]), row, slice(int(first), int(end))))
    return segments


def _evidence(
    features: Float[np.ndarray, "T E"],
    vectors: Float[np.ndarray, "G E"],
    scale: float,
    none: float | None,
    num_frames: int,
    frame_weight: float,
) -> Float[np.ndarray, "T S"]:
    """Log likelihoods of the frames in every state, "none" last, up to a constant of each frame."""
    sums = np.concatenate([np.zeros_like(features[:1], np.float64), np.cumsum(features, axis=0, dtype=np.float64)])
    places = np.arange(len(features))
    first, last = np.maximum(places - num_frames // 2, 0), np.minimum(places + (num_frames + 1) // 2, len(features))
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    scaled = features * (scale * frame_weight / num_frames / np.linalg.norm(means, axis=1, keepdims=True))
    evidence = np.asarray(scaled, np.float32) @ vectors.T
    if none is None:
        return evidence
    return np.pad(evidence, ((0, 0), (0, 1)), constant_values=none * frame_weight / num_frames)


def _likeliest(evidence: Float[np.ndarray, "T S"], changes: Float[np.ndarray, " T1"]) -> Int[np.ndarray, " T"]:
    """The likeliest sequence of states (Viterbi); every state may follow every other, so a step costs S, not S²."""
    best = evidence[0].astype(np.float64)
    from_best: list[tuple[int, Bool[np.ndarray, " S"]]] = []  # of each later frame: the best state before it, who left
    for here, change in zip(evidence[1:], changes, strict=True):
        leader = int(best.argmax())
        stays = best + np.log(1 - change)
        moved = best[leader] + np.log(change / max(len(best) - 1, 1)) if change else -np.inf
        from_best.append((leader, moved > stays))
        best = np.maximum(stays, moved) + here
    path = [int(best.argmax())]
    for leader, moved in reversed(from_best):
        path.append(leader if moved[path[-1]] else path[-1])
    return np.array(path[::-1])
