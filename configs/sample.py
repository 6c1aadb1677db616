"""RICE (ICL) on the simulated livestreams of `data/sample`, from the small encoder that the repository ships.

    scripts/demo.sh

Hardware: 2 CPU cores.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.data_dir = "data/built/sample"
    config.data.train = "lpr4m/train"
    config.data.query = "lpr4m/query"
    config.data.gallery = "lpr4m/gallery"
    config.data.batch_size = 64
    config.data.resize = 72
    config.data.num_workers = 0
    config.data.num_threads = 2

    config.model.image_size = 64
    config.model.patch_size = 16
    config.model.width = 192
    config.model.layers = 6
    config.model.heads = 3
    config.model.embed_dim = 128
    config.model.dtype = "float32"
    config.eval.batch_size = 32
    config.eval.pixels = True
    return config
