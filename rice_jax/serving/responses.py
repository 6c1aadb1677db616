"""The server's responses, as its OpenAPI schema describes them."""

import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

TEXT_USED = (
    "Whether what is said has a part in the ranking: it does if the index holds titles as vectors, or if a decoder "
    "re-ranks that reads texts."
)


class Product(BaseModel):
    """A product of the shop."""

    id: str
    gallery: str
    title: str = Field(description="Empty if unknown.")
    score: float = Field(
        description="Score by frames, pooled over its images, or the cosine of the embeddings if the index has no "
        "calibration by frames. For a re-ranked product, the decoder's cosine is added with the calibration's weight; "
        "without a weight, it stands alone."
    )
    confidence: float | None = Field(
        description="Probability that this product is shown; null if the index has no calibration."
    )
    image: str = Field(description="Address of a small picture of its most similar image, relative to the server's.")
    image_id: str = Field(description="Id of this image.")
    fields: dict[str, str] = Field(description="Further columns of the shop's CSV, such as its price.")


class Said(BaseModel):
    """What is said from one moment to another."""

    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    text: str
    confidence: float | None = Field(description="Of the speech recognizer; null if unknown.")


class Segment(BaseModel):
    """A part of a video that shows one product, or none of the gallery's."""

    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    product: Product | None = Field(description="The product shown; null if it is none of the gallery's.")
    confidence: float | None = Field(
        description="Probability that `product` is right; null if the index has no calibration."
    )
    similarity: float | None = Field(
        description="Largest similarity of a product, if `product` is null; null if it is not, or if it is unknown."
    )
    products: list[Product] = Field(description="Products most similar to the frames of this part, best first.")
    speech: list[Said] | None = Field(
        description="What is said meanwhile; null if the request has neither `subtitles` nor `text`."
    )


class RankingResponse(BaseModel):
    """A ranking of the gallery's products."""

    products: list[Product] = Field(description="Best first.")
    none: float | None = Field(
        description="Probability that none of the gallery's products is shown; null if the index has no calibration."
    )


class StreamResponse(RankingResponse):
    """What a stream shows now."""

    time: float = Field(description="Time of the newest frame, seconds.")
    num_frames: int = Field(description="Number of frames that the ranking is made of.")
    restarted: bool = Field(
        description="Whether the stream's clock has jumped, so that older frames do not count from this one on."
    )
    speech: list[Said] = Field(description="What is said while these frames are shown.")
    text_used: bool = Field(description=TEXT_USED)


class TextResponse(BaseModel):
    """What becomes of a text."""

    text_used: bool = Field(description=TEXT_USED)


class SourceResponse(BaseModel):
    """A source that the server follows."""

    url: str = Field(description="Without user, password, and query.")
    state: Literal["connecting", "live", "waiting", "ended", "failed"] = Field(
        description="`waiting` for the next try; `ended` and `failed` are final."
    )
    reason: str | None = Field(description="Why it waits, has ended, or has failed.")
    pictures: int = Field(description="Number of pictures looked at.")


class StreamStateResponse(BaseModel):
    """The state of a stream."""

    id: str
    source: SourceResponse | None = Field(description="null if the pictures of the stream are pushed.")
    shown: dict[str, Any] | None = Field(
        description="The event since which a product is shown; null if none is, or if nobody has listened yet."
    )
    speech: list[Said] = Field(description="What was said of late, in order, by the clock of the pushed pictures.")


class RecognitionResponse(BaseModel):
    """What a clip or video shows over time and, if it shows one product or is given by its pictures, as a whole."""

    timeline: list[Segment] = Field(description="Parts of the video in order.")
    named_from: float | None = Field(
        description="Similarity from which a product is named; null if some product always is."
    )
    num_frames: int = Field(description="Number of frames looked at.")
    warnings: list[str] = Field(description="What is wrong with the video, such as damage or an early end.")
    index: str = Field(description="Fingerprint of the index that was searched.")
    products: list[Product] = Field(
        description="Ranking for all frames as one clip, best first; empty for a video of several parts."
    )
    none: float | None = Field(
        description="Probability that none of the gallery's products is shown; null if the index has no calibration, "
        "and for a video of several parts."
    )
    text_used: bool = Field(description=TEXT_USED)


class EmbeddingsResponse(BaseModel):
    """Embeddings of pictures."""

    embeddings: list[list[float]] = Field(description="Vectors of unit length, in the order of the pictures.")
    fingerprint: str = Field(
        description="Tells models apart: only vectors of the same model can be compared, by their dot product."
    )


class WordsResponse(BaseModel):
    """The products that words describe."""

    products: list[Product] = Field(description="Best first; the score is the largest cosine of a product's images.")
    by: Literal["pictures", "titles"] = Field(description="What the words are compared with.")
    index: str = Field(description="Fingerprint of the index.")


class ListedImage(BaseModel):
    """An image of a product."""

    id: str
    image: str = Field(description="Address of a small picture of it, relative to the server's.")


class ListedProduct(BaseModel):
    """A product of the index."""

    id: str
    gallery: str
    title: str = Field(description="Empty if unknown.")
    images: list[ListedImage]
    fields: dict[str, str] = Field(description="Further columns of the shop's CSV, such as its price.")


class ProductsResponse(BaseModel):
    """Some of the products of the index."""

    products: list[ListedProduct] = Field(description="In the order of the index: by gallery and id.")
    total: int = Field(description="Number of products, of which these are some.")
    index: str = Field(description="Fingerprint of the index; if it changes from page to page, begin again.")


class HealthResponse(BaseModel):
    """The index, its model, and how videos are sampled."""

    images: int = Field(description="Number of images in the index.")
    products: int = Field(description="Number of products in the index.")
    galleries: int = Field(description="Number of galleries in the index.")
    num_frames: int = Field(description="Largest number of frames in a clip; more are sampled evenly.")
    interval_seconds: float = Field(description="Time between the frames of a video or stream that are looked at.")
    fingerprint: str = Field(description="Tells models apart.")
    index: str = Field(description="Tells indexes apart: SHA-256 of the contents.")
    written: datetime.datetime = Field(description="When the index was written.")
    loaded: datetime.datetime = Field(description="When the server has loaded it.")
    stale: bool = Field(
        description="Whether a newer index has been written that cannot be used; the server's log says why."
    )


class IndexesResponse(BaseModel):
    """All indexes of the server."""

    indexes: dict[str, HealthResponse] = Field(description="By name.")


class ErrorResponse(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="What was found, and what was expected.")
