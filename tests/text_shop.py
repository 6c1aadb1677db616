"""A shop with titles, and a model with random weights whose decoder reads texts."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rice_jax.config import Config, MeshConfig
from rice_jax.eval import rerank
from rice_jax.eval.embed import model_embedder
from rice_jax.eval.texts import TextEmbedder, load_text_model, write_embeddings
from rice_jax.index.model import load_model
from rice_jax.input.pipeline import join
from rice_jax.input.source import Source
from rice_jax.input.text_views import SPEECH, TITLE, text_views
from rice_jax.input.views import Example
from rice_jax.models.create import create_params
from rice_jax.models.weights import save_weights
from rice_jax.parallel.mesh import create_mesh
from tests.settings import model_of, small_config
from tests.shop import draw, png, show
from tests.text_model import EMBED_DIM

TITLES = {"a": "红色西装", "b": "", "c": "女鞋", "d": "简约外套"}
SPEECH_OF = {"clip": "看这件西装, 好看", "silent": ""}
STRENGTH = 100.0  # by which texts count more than in a fresh decoder, so that they change scores


class TextShop(NamedTuple):
    """Its pictures are squares; `weights` is a converted model or a run."""

    config: Config
    weights: Path
    csv: Path

    def batch(self, kind, key: str, text: str) -> dict[str, np.ndarray]:
        """A text as the evaluation's batch of one has it."""
        row = {kind.key: key.encode(), kind.text: text.encode()}
        parts = [
            view.evaluate(Example(source=object.__new__(Source), index=0, row=row))
            for view in text_views(self.config.input, kind)
        ]
        return {name: np.asarray(value)[None] for name, value in join(parts).items()}

    def matches(self, clip: list[np.ndarray], key: str, *, with_texts: bool = True) -> np.ndarray:
        """The evaluation's cosines of a clip and all pictures.

        Args:
            clip: pictures.
            key: of what is said, in `SPEECH_OF`.
            with_texts: whether titles and speech are given at all.
        """
        model, images = load_model(self.weights), []
        embed = jax.jit(model_embedder(model.graphdef, with_queries=True).image)
        for place, (name, title) in enumerate(TITLES.items()):
            texts = self.batch(TITLE, name, title) if with_texts else {}
            image = show(png(draw(place)), self.config)[None]
            images.append(embed(model.params, {"image": image} | texts).queries)
        video = np.stack([show(png(picture), self.config) for picture in clip])[None]
        batch = {"video": video, "frame_mask": np.ones(video.shape[:2], bool), "queries": np.stack(images, axis=1)}
        batch |= self.batch(SPEECH, key, SPEECH_OF[key]) if with_texts else {}
        return np.asarray(jax.jit(rerank.matcher(model.graphdef))(model.params, batch))[0]


def make_text_shop(directory: Path, tower: Path, text: str, num_pairs: int = 1) -> TextShop:
    """Writes the pictures, the texts and the model.

    Args:
        directory: an empty one.
        tower: a converted text tower.
        text: `config.model.text`.
        num_pairs: of the decoder's blocks.
    """
    directory.mkdir(exist_ok=True)
    for place, name in enumerate(TITLES):
        (directory / f"{name}.png").write_bytes(png(draw(place)))
    lines = ["id,path,title", *(f"{name},{name}.png,{title}" for name, title in TITLES.items())]
    (directory / "shop.csv").write_text("\n".join(lines), encoding="utf-8")
    how: dict[str, object] = {"model__text_init_from": str(tower)}
    sizes = {"model__layers": 2 * num_pairs, "model__pmd__num_pairs": num_pairs, "loss__pfr_weight": 0.0}
    if text == "embeddings":
        embedder = TextEmbedder(load_text_model(tower), 8)
        for kind, texts in (("titles", TITLES), ("speech", SPEECH_OF)):
            given = {key: own for key, own in texts.items() if own}
            write_embeddings(directory / "texts" / kind, given, embedder)
        how = {"model__text_dim": EMBED_DIM, "data__texts": str(directory / "texts")}
    config = small_config(model__text=text, **how, **sizes)
    params = create_params(model_of(config), create_mesh(MeshConfig(1, 1), jax.devices()[:1]), seed=5)
    params["pmd"]["text"] = jax.tree.map(lambda x: x * STRENGTH, params["pmd"]["text"])
    save_weights(directory / "weights", params, config.to_dict())
    return TextShop(config, directory / "weights", directory / "shop.csv")
