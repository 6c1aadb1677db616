"""What is said while frames are shown, and how similar it is to the titles of an index."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from rice_jax.recognition.engine import Engine
from rice_jax.recognition.subtitles import Sentence, join_sentences, said_between


def said_around(times: Sequence[float], sentences: Sequence[Sentence], num_frames: int, end: float) -> list[str]:
    """What is said while the clip of `num_frames` around each frame is shown.

    Args:
        times: of the frames, ascending, in seconds.
        sentences: by their start.
        num_frames: of a clip.
        end: when the last frame ends.
    """
    edges, last = [*times, end], len(times)
    clips = ((max(place - num_frames // 2, 0), min(place + (num_frames + 1) // 2, last)) for place in range(last))
    return [join_sentences(said_between(sentences, edges[start], edges[stop])) for start, stop in clips]


def text_scores(engine: Engine, said: Sequence[str], rows: Int[np.ndarray, " g"]) -> Float32[np.ndarray, "T g"] | None:
    """What texts add to the scores of images; None = nothing is added.

    Args:
        engine: of the index.
        said: a text for each frame.
        rows: of the images.
    """
    text = engine.index.text
    if text is None or not any(said):
        return None
    distinct = list(dict.fromkeys(said))
    place = {own: number for number, own in enumerate(distinct)}
    scores = text.weight * (engine.embed_texts(distinct) @ text.vectors[rows].T)
    return scores[[place[own] for own in said]].astype(np.float32)
