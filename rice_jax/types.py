"""Batches and outputs, and the glossary of letters and shapes.

Words: an *image* is a shop's product picture; a *video* is a livestream clip as a list of frames; a *gallery* is the
images that a query may match; *tokens* include the CLS token, or what stands for it, *patches* do not; a *feature*
becomes an *embedding* by L2 normalization; in a `*_mask` True means keep.

Letters: B global batch, T frames, S side of a picture in pixels, L tokens, M = T · L tokens of a video, N patches,
D width, E embedding, H heads, K candidates, G gallery images, Q queries. Of a detector: M boxes and Q object queries
of a frame, P layers of its decoder.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

NUM_LISTED = 10  # faults named in an error


class DataError(ValueError):
    """Data that cannot be used; the message says what was found, where, and what to do."""


def listed(title: str, lines: Sequence[str]) -> str:
    """A title with the first `NUM_LISTED` of some lines below it, and the number of the others."""
    more = [f"and {len(lines) - NUM_LISTED} more"] if len(lines) > NUM_LISTED else []
    return "\n  ".join([title, *lines[:NUM_LISTED], *more])


def counted(number: int, noun: str) -> str:
    """A number of things, such as "1 query" and "1,200 clips"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def normal_form(text: str) -> str:
    """A text in the form in which texts are compared: keyboards, spreadsheets, and macOS write accents differently."""
    return unicodedata.normalize("NFC", text)


class Decoded(NamedTuple):
    """Pictures of any size up to H × W, and the windows to resize to S × S pixels; see `models.resample`.

    Stands for `UInt8[Array, "B S S 3"]` in a batch if the device does the work.
    """

    pixels: UInt8[Array, "*B H W 3"]  # RGB, 0 to 255, in the upper left; the rest is undefined
    size: Int32[Array, "*B 2"]  # height and width of the picture; 0 = no picture
    rows: Float32[Array, "*B S"]  # centers of the result's rows, at equal distances, in pixels
    columns: Float32[Array, "*B S"]  # the same for columns; descending = mirrored
    color: Float32[Array, "*B 3 4"] | None  # maps [R, G, B, 1] to RGB; None = unchanged


class EmbeddedTexts(NamedTuple):
    """A text for each row, of which some are missing."""

    embedding: Float[Array, "B W"]  # unit length, float32; of a missing text without meaning
    mask: Bool[Array, " B"]  # True = there is a text


class Batch(TypedDict):
    """Pairs of a video and its product's image; pictures are RGB, 0 to 255.

    A model that reads texts also gets the image's `title` and the video's `speech`, each as embeddings, `title`
    float32 [B, W], or as tokens, `title_ids` int32 [B, L] and `title_token_mask` bool [B, L]; `title_mask` bool [B] is
    True where there is one.

    With a teacher, `teacher` float32 [B, 2, W] holds its unit-length embeddings of the image and of the video, and
    `teacher_mask` bool [B, 2] is True where there is one.
    """

    image: UInt8[Array, "B S S 3"]
    video: UInt8[Array, "B T S S 3"]  # padding frames are zeros
    frame_mask: Bool[Array, "B T"]  # True = a real frame; every video has at least one
    patch_mask: NotRequired[Bool[Array, "B T N"]]  # True = a patch to attend to; absent = all
    image_key: Int32[Array, " B"]  # equal for equal shop images
    index: Int32[Array, " B"]  # row of the data set


class DetectionBatch(TypedDict):
    """Videos and where the intended product is in their frames."""

    video: UInt8[Array, "B T S S 3"]  # RGB, 0 to 255; padding frames are zeros
    frame_mask: Bool[Array, "B T"]  # True = a real frame
    boxes: Float[Array, "B T M 4"]  # left, top, right, bottom in shares of the picture
    box_mask: Bool[Array, "B T M"]  # True = a box
    index: Int32[Array, " B"]  # row of the data set


class Detections(NamedTuple):
    """The output of every layer of a detector's decoder, in order; float32."""

    logits: Float[Array, "P B T Q"]  # of a product against none; the sigmoid is the score
    boxes: Float[Array, "P B T Q 4"]  # center x, center y, width, height, 0 to 1


class Embeddings(NamedTuple):
    """L2-normalized, float32."""

    image: Float[Array, "B E"]
    video: Float[Array, "B E"]


class Tokens(NamedTuple):
    """The encoder's tokens, CLS first, in the compute dtype, and the texts beside them."""

    image: Float[Array, "B L D"]
    video: Float[Array, "B T L D"]
    title: EmbeddedTexts | None = None  # the image's; None = the batch has none
    speech: EmbeddedTexts | None = None  # the video's


class EncodedFrames(NamedTuple):
    """What is kept of an encoded frame; in the compute dtype."""

    features: Float[Array, "*B E"]  # not normalized
    tokens: Float[Array, "*B L D"]  # for a match


class EncodedImages(NamedTuple):
    """What is computed of an image before it meets a video."""

    embedding: Float[Array, "B E"]  # unit length, float32
    queries: Float[Array, "B R D"]  # the image's side of a match, in the compute dtype


class Matches(NamedTuple):
    """The decoder's output for an image and each of K videos, the image's own first; float32."""

    cosine: Float[Array, "B K"]
    attention: Float[Array, "B C L M"] | None  # to its own video: probabilities of C = pairs · heads maps
