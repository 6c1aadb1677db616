"""A model's structure and fresh parameters, placed on the mesh.

What is traced and compiled for a model is kept for the next model of equal settings.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from rice_jax.models.cope import Cope, CopeConfig
from rice_jax.models.detr import Detector, DetrConfig
from rice_jax.models.encoders import VIDEO_ENCODERS
from rice_jax.models.rice import Rice, RiceConfig
from rice_jax.models.video_model import VideoModel
from rice_jax.parallel.mesh import Placement, abstract_arrays, parameter_shardings

AnyModelConfig = RiceConfig | DetrConfig | CopeConfig
# A family of models is its settings class and its module, which fulfills `contract.AnyModel`.
MODELS: dict[type, type[Any]] = {RiceConfig: Rice, DetrConfig: Detector, CopeConfig: Cope}


def model_class(config: AnyModelConfig) -> type[Any]:
    """The module of a configuration; an encoder of whole videos needs another one than RICE's."""
    if isinstance(config, RiceConfig) and config.encoder.architecture in VIDEO_ENCODERS:
        return VideoModel
    return MODELS[type(config)]


def create_model(config: AnyModelConfig, mesh: Mesh) -> nnx.GraphDef:
    """A model's structure without weights: `nnx.merge(graphdef, params)` is the model."""
    return _structure(config, mesh)[0]


def create_params(config: AnyModelConfig, mesh: Mesh, seed: int) -> PyTree:
    """Fresh parameters, each created where it will live; a decoder starts from the encoder's last blocks."""
    return _creator(config, mesh, seed)()


def abstract_params(config: AnyModelConfig, mesh: Mesh) -> PyTree:
    """The shapes of the parameters and their place on the mesh, without memory for them."""
    return abstract_arrays(mesh, _structure(config, mesh)[1])


def start_decoder(params: PyTree, config: AnyModelConfig) -> PyTree:
    """Lets the decoder's pairs start from the encoder's last blocks, in order.

    Without a decoder, or with an encoder that is no vision transformer, nothing changes.

    Source: docs/reference.md, section 3; recorded from the reference's initialization.
    """
    if "pmd" not in params or config.encoder.architecture != "vit":
        return params
    num_pairs = params["pmd"]["self_blocks"]["qkv"]["kernel"].shape[0]
    last = jax.tree.map(lambda x: x[-2 * num_pairs :], params["encoder"]["blocks"])
    blocks = {
        "self_blocks": jax.tree.map(lambda x: x[0::2], last),
        "cross_blocks": jax.tree.map(lambda x: x[1::2], last),
    }
    return params | {"pmd": params["pmd"] | blocks}


@functools.cache
def _structure(config: AnyModelConfig, mesh: Mesh) -> tuple[nnx.GraphDef, PyTree]:
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: _model(config, mesh, seed=0)))
    return graphdef, nnx.to_pure_dict(shapes)


@functools.cache
def _creator(config: AnyModelConfig, mesh: Mesh, seed: int) -> Callable[[], PyTree]:
    create = lambda: start_decoder(nnx.to_pure_dict(nnx.split(_model(config, mesh, seed))[1]), config)  # noqa: E731
    return jax.jit(create, out_shardings=parameter_shardings(mesh, _structure(config, mesh)[1]))


def _model(config: AnyModelConfig, mesh: Mesh, seed: int) -> nnx.Module:
    return model_class(config)(config, placement=Placement(mesh), rngs=nnx.Rngs(seed))
