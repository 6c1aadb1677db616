"""The evaluation of a data set whose products have several photos."""

import json

import jax
import numpy as np
import pytest

from rice_jax.config import MeshConfig
from rice_jax.eval.calibration import read_calibration
from rice_jax.eval.results import read_rankings, read_results
from rice_jax.input.ground_truth import read_gallery_index, read_query_index
from rice_jax.models.create import abstract_params, create_model, create_params
from rice_jax.parallel.mesh import create_mesh
from rice_jax.tasks.retrieval_evaluation import RetrievalEvaluator, match_row
from rice_jax.tasks.task import Run
from tests.data.raw_lpr4m import image_id_of, write_raw
from tests.data.test_lpr4m import build
from tests.data.test_lpr4m_photos import add_photo
from tests.settings import model_of, small_config

SETTINGS = dict(loss__pfr_weight=0.0, eval__rerank=2, eval__score="frames", eval__pixels=False)
PHOTOS = {1000: 3, 1001: 1, 1003: 2, 1006: 4}  # further ones of products in two galleries of four


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    directory = tmp_path_factory.mktemp("photos")
    raw = write_raw(directory / "raw")
    for product, count in PHOTOS.items():
        for number in range(1, count + 1):
            add_photo(raw, "images", product, number)
    arguments = "--configs", "query,gallery", "--option", "photos=all"
    build(raw, directory / "built", *arguments)
    return directory / "built"


def evaluate(shop, workdir, num_devices):
    """Fresh weights, as if trained: they are re-ranked, calibrated, and reported too."""
    config = small_config(data__data_dir=str(shop), **SETTINGS)
    model, mesh = model_of(config), create_mesh(MeshConfig(), jax.devices()[:num_devices])
    workdir.mkdir()
    run = Run(config, workdir, mesh, model, create_model(model, mesh), abstract_params(model, mesh))
    RetrievalEvaluator(run).evaluate(config.train.total_steps, create_params(model, mesh, seed=0))
    return read_rankings(workdir / "rankings.jsonl")


@pytest.mark.slow
def test_everything_counts_products_and_eight_devices_give_the_same(shop, tmp_path):
    one = evaluate(shop, tmp_path / "one", 1)
    gallery = read_gallery_index(str(shop), "lpr4m/gallery")
    assert len(gallery.image_ids) == 8 + sum(PHOTOS.values())
    product_of = dict(zip(gallery.image_ids, gallery.product_ids, strict=True))
    queries = read_query_index(small_config(data__data_dir=str(shop)).input)
    for query, line in zip(queries, one, strict=True):
        names = [name for name, _ in line["top"]]
        assert line["gallery_size"] == 4 and len(set(names)) == 4, "products, each once"
        assert [product_of[image] for image in line["images"]] == names
        assert line["truths"] == list(query.image_ids) and names.index(line["truths"][0]) + 1 == line["rank"]
    results = read_results(tmp_path / "one" / "results.json")
    step = small_config().train.total_steps
    score = results[match_row(step, 2)].score
    assert score.chance["rank-1"] == pytest.approx(1 / 4) and score.rank["rank-5"] == 1
    assert results[match_row(step, 2)].galleries.max_size == 4
    report = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert image_id_of(1000) in report and f"{image_id_of(1000)}-1" not in report, "photos go by their product"

    eight = evaluate(shop, tmp_path / "eight", 8)
    for line, other in zip(one, eight, strict=True):
        scores, others = (np.array([score for _, score in own.pop("top")]) for own in (line, other))
        np.testing.assert_allclose(scores, others, atol=1e-5)
        assert line == other
    assert read_results(tmp_path / "eight" / "results.json").keys() == results.keys()
    fitted = [read_calibration(tmp_path / name) for name in ("one", "eight")]
    assert fitted[0].threshold == pytest.approx(fitted[1].threshold, abs=1e-4)
    assert json.loads((tmp_path / "one" / "calibration.json").read_text())["num_clips"] == 4
