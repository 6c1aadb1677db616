"""The settings of the run in `version-0.1.tar.gz`."""

from rice_jax.config import default_config


def get_config():
    config = default_config()
    config.data.train = "lpr4m/train"
    config.data.query = "lpr4m/query"
    config.data.gallery = "lpr4m/gallery"
    config.data.batch_size = 8
    config.data.num_frames = 3
    config.data.resize = 20
    config.data.num_threads = 1
    config.model.image_size = 16
    config.model.patch_size = 8
    config.model.width = 8
    config.model.layers = 2
    config.model.heads = 2
    config.model.embed_dim = 8
    config.model.dtype = "float32"
    config.model.pmd.num_heads = 2
    config.optimizer.encoder_learning_rate = 1e-3
    config.optimizer.warmup_steps = 1
    config.train.total_steps = 4
    config.train.log_interval_steps = 1
    config.train.checkpoint_interval_steps = 2
    config.eval.batch_size = 8
    config.eval.rerank = 2
    config.eval.pixels = True
    return config
