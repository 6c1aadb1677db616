"""Views of texts: the title of an image, the speech of a video, and the texts of product items."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rice_jax.config import InputConfig
from rice_jax.input.text_embeddings import TextEmbeddings, read_embeddings
from rice_jax.input.texts import ITEM, KINDS, clean, item_key, tidy
from rice_jax.input.tokenizer import Tokenizer
from rice_jax.input.views import Example, Part, TrainExample, View
from rice_jax.types import DataError


class Kind(NamedTuple):
    """A kind of text."""

    name: str  # in the batch
    kinds: tuple[str, ...]  # in `KINDS`
    key: str  # column with what names it
    text: str  # column with the text
    clean: Callable[[str], str] = clean


TITLE, SPEECH = (Kind(name, (kind,), *KINDS[kind]) for name, kind in (("title", "titles"), ("speech", "speech")))
# An item may be an image or a video in turn, whatever its text is.
ITEM_SPEECH = Kind("speech", tuple(KINDS), *ITEM, tidy)
PAIR_TITLE = Kind("title", tuple(KINDS), "image_item", "image_text", tidy)
PAIR_SPEECH = Kind("speech", tuple(KINDS), "clip_item", "clip_text", tidy)


def text_views(config: InputConfig, *kinds: Kind) -> list[View]:
    """The views of texts that the settings ask for."""
    views = {"off": None, "embeddings": EmbeddingView, "tower": TokensView}
    view = views[config.text]
    return [view(config, kind) for kind in kinds] if view else []


class EmbeddingView(View):
    """The embedding of a text, `NAME`, and whether there is one, `NAME_mask`."""

    def __init__(self, config: InputConfig, kind: Kind):
        """Checks the embeddings.

        Raises:
            FileNotFoundError: there are none.
            DataError: they are damaged, of another size than the model's, or titles and speech are of two models.
        """
        self._config, self._kind = config, kind
        self.columns = (kind.key,)
        found = [embeddings for each in KINDS if (embeddings := read_embeddings(config.texts, each))]
        for embeddings in found:
            if (size := embeddings.vectors.shape[1]) != config.text_dim:
                raise DataError(
                    f"{config.texts}: found embeddings of {size} numbers, expected config.model.text_dim "
                    f"({config.text_dim})"
                )
        if len({embeddings.fingerprint for embeddings in found}) > 1:
            raise DataError(f"{config.texts}: titles and speech are of two models; embed both with one")

    def train(self, example: TrainExample) -> Part:
        return self.evaluate(example)

    def evaluate(self, example: Example) -> Part:
        vector, name = None, self._kind.name
        if example.row:
            key = example.row[self._kind.key].decode()
            key = item_key(example.source.name, key) if self._kind.key == ITEM[0] else key
            given = (embeddings.get(key) for embeddings in self._embeddings)
            vector = next((one for one in given if one is not None), None)
        found = np.zeros(self._config.text_dim, np.float32) if vector is None else vector
        return {name: found, f"{name}_mask": np.bool_(vector is not None)}

    @property
    def _embeddings(self) -> list[TextEmbeddings]:
        read = (read_embeddings(self._config.texts, kind) for kind in self._kind.kinds)  # in each worker process
        return [embeddings for embeddings in read if embeddings]


class TokensView(View):
    """The tokens of a text, `NAME_ids` and `NAME_token_mask`, and whether there is one, `NAME_mask`."""

    def __init__(self, config: InputConfig, kind: Kind):
        """Checks the tokenizer.

        Raises:
            DataError: there is none.
        """
        self._config, self._kind = config, kind
        self.optional = (kind.text,)
        _tokenizer(config.tokenizer, config.text_context)

    def train(self, example: TrainExample) -> Part:
        return self.evaluate(example)

    def evaluate(self, example: Example) -> Part:
        text = self._kind.clean(example.row.get(self._kind.text, b"").decode())
        ids, token_mask, _ = _tokenizer(self._config.tokenizer, self._config.text_context)([text])
        name = self._kind.name
        return {f"{name}_ids": ids[0], f"{name}_token_mask": token_mask[0], f"{name}_mask": np.bool_(text != "")}


_tokenizer = functools.cache(Tokenizer)  # a worker process reads its own
