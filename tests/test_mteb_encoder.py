"""A model in MTEB, which is no part of the extra `test`."""

import types

import numpy as np
import pytest
from PIL import Image

import rice_jax
from rice_jax.eval import metrics, ranking
from rice_jax.mteb_encoder import MtebEncoder

datasets = pytest.importorskip("datasets")
mteb = pytest.importorskip("mteb")
torch = pytest.importorskip("torch")
abstasks, task_metadata = (pytest.importorskip(f"mteb.abstasks{name}") for name in ("", ".task_metadata"))


@pytest.fixture(scope="module")
def model(live_shop):
    return rice_jax.load(live_shop.index.about.checkpoint)


class Video:
    """Of torchcodec's decoder what MTEB's function uses."""

    def __init__(self, pictures):
        self._frames = torch.as_tensor(np.moveaxis(np.stack(pictures), -1, 1).copy())
        self.metadata = types.SimpleNamespace(num_frames=len(pictures))

    def get_frames_at(self, indices):
        return types.SimpleNamespace(data=self._frames[indices])


def test_videos_and_images_are_embedded(model, live_shop):
    encoder, pictures = MtebEncoder(model, "me/rice"), live_shop.pictures
    videos = [pictures[:2], pictures[:12]]
    found = encoder.encode([{"id": ["a"], "video": [Video(videos[0])]}, {"id": ["b"], "video": [Video(videos[1])]}])
    assert model.num_frames == 10
    spread = [pictures[i] for i in (0, 1, 2, 4, 5, 6, 7, 9, 10, 11)]
    expected = np.stack([model.embed_video(frames) for frames in (videos[0], spread)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    images = encoder.encode([{"image": [Image.fromarray(picture) for picture in pictures[:3]]}])
    np.testing.assert_allclose(images, model.embed_images(pictures[:3]), atol=1e-6)
    cosines = encoder.similarity(torch.as_tensor(found), images)
    assert cosines.shape == (2, 3)
    np.testing.assert_allclose(encoder.similarity_pairwise(found, images[:2]), cosines.diagonal(), atol=1e-6)
    assert isinstance(encoder, mteb.models.EncoderProtocol)


def test_a_task_has_the_scores_of_our_own_evaluation(model, live_shop):
    gallery, asked = live_shop.pictures[:8], live_shop.pictures[6:]
    truths = [[1, 2], [3], [0, 5, 7], [4], [6, 2], [1]]

    class Task(abstasks.AbsTaskRetrieval):
        metadata = task_metadata.TaskMetadata(
            name="ShopI2IRetrieval",
            description="A shop's images.",
            reference=None,
            dataset={"path": "none", "revision": "none"},
            type="Any2AnyRetrieval",
            category="i2i",
            modalities=["image"],
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_):
            def rows(kind, pictures):
                rows = {
                    "id": [f"{kind}{i}" for i in range(len(pictures))],
                    "image": [Image.fromarray(picture) for picture in pictures],
                }
                return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())

            self.dataset = {
                "default": {
                    "test": {
                        "corpus": rows("i", gallery),
                        "queries": rows("q", asked),
                        "relevant_docs": {f"q{q}": {f"i{i}": 1 for i in own} for q, own in enumerate(truths)},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    encoder = MtebEncoder(model, "me/rice")
    [result] = mteb.evaluate(encoder, Task(), cache=None).task_results
    [found] = result.scores["test"]
    ranked = ranking.rank(
        ranking.Queries(
            model.embed_images(asked),
            [f"q{i}" for i in range(6)],
            ["g"] * 6,
            [[f"i{i}" for i in own] for own in truths],
        ),
        ranking.GalleryImages(model.embed_images(gallery), ["g"] * 8, [f"i{i}" for i in range(8)]),
    )
    score = metrics.evaluate(ranked).score
    assert found["hit_rate_at_1"] == pytest.approx(score.rank["rank-1"], abs=1e-5)
    assert found["hit_rate_at_3"] == pytest.approx(score.rank["rank-3"], abs=1e-5)
    assert found["map_at_1000"] == pytest.approx(score.order["mAP"].mean, abs=1e-5)
    assert found["mrr_at_1000"] == pytest.approx(score.order["MRR"].mean, abs=1e-5)
    assert found["main_score"] == found["ndcg_at_10"] == pytest.approx(score.order["nDCG@10"].mean, abs=1e-5)
