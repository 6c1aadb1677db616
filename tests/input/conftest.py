"""The data sets of `tiny_shop`, built once, and a configuration that reads them."""

import pytest
from absl import flags

from rice_jax.config import InputConfig
from tests.input import tiny_shop


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    tiny_shop.build(root / "shop" / "train", "train", tiny_shop.TRAIN, {"num_rows": 11})
    skipped = {"query-9": "no frame could be read"}
    tiny_shop.build(root / "shop" / "query", "test", tiny_shop.QUERIES, {"num_queries": 6, "skipped": skipped})
    tiny_shop.build(root / "shop" / "gallery", "test", tiny_shop.GALLERY, {"num_images": 6})
    return str(root)


@pytest.fixture(scope="session")
def config(data_dir) -> InputConfig:
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags; outside tests, app.run parses them
    return InputConfig(
        data_dir=data_dir,
        train="shop/train",
        query="shop/query",
        gallery="shop/gallery",
        batch_size=4,
        resize=32,
        num_threads=1,
        image_size=28,
        patch_size=32,
        ipd="off",
        ipd_use="mask",
        ipd_margin=0.2,
        num_boxes=1,
        seed=7,
    )
