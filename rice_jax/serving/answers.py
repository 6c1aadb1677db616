"""What the server answers, as its OpenAPI page describes it."""

from pydantic import BaseModel, Field


class Product(BaseModel):
    """An image of the shop."""

    id: str
    gallery: str
    title: str = Field(description="Empty = unknown.")
    score: float = Field(description="Cosine of the embeddings; of a re-ranked image the decoder's.")
    confidence: float | None = Field(description="That it is shown; null = the index has no calibration.")
    image: str = Field(description="Where a small picture of it is, from the server's address.")


class Ranking(BaseModel):
    """The images that are shown most likely."""

    products: list[Product] = Field(description="Best first.")
    none: float | None = Field(description="Confidence that none of the gallery's is shown; null as above.")


class StreamRanking(Ranking):
    """What a stream shows now."""

    time: float = Field(description="Of its newest frame, seconds.")
    num_frames: int = Field(description="That this is ranked by.")


class Shown(BaseModel):
    """A part of a video in which one product is shown, or none."""

    start: float = Field(description="Seconds.")
    end: float
    product: Product | None = Field(description="null = none of the gallery's.")
    confidence: float | None = Field(description="That this is so; null = the index has no calibration.")
    products: list[Product] = Field(description="By the frames of this part alone, best first.")


class Recognised(Ranking):
    """What a clip or video shows, as a whole and over time."""

    num_frames: int = Field(description="That were looked at.")
    timeline: list[Shown]


class Health(BaseModel):
    """What the server searches, and what it takes."""

    images: int
    galleries: int
    num_frames: int = Field(description="Of a clip; of a longer one so many are taken evenly.")
    interval_seconds: float = Field(description="Between the frames of a video that are looked at.")
    fingerprint: str = Field(description="Of the model.")


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
