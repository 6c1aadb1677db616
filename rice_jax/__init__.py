"""rice_jax recognizes the product shown in a livestream clip among a shop's images.

Example:
    >>> import rice_jax
    >>> index = rice_jax.build_index("pictures", model="runs/lpr4m", out="shop")
    >>> recognizer = rice_jax.Recognizer("shop", top=3)
    >>> ranking = recognizer.push("frame.jpg", time=0.0)
    >>> [product.id for product in ranking.products]
    ['mug', 'sofa']

The names below are imported on first use, so `import rice_jax` is fast.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rice_jax.api import TrainedModel, load
    from rice_jax.index.store import Index, read_index
    from rice_jax.index.update import build_index
    from rice_jax.models.weights import CheckpointError
    from rice_jax.recognition.naming import Naming
    from rice_jax.recognition.recognizer import Recognizer
    from rice_jax.types import DataError

__all__ = [
    "CheckpointError",
    "DataError",
    "Index",
    "Naming",
    "Recognizer",
    "TrainedModel",
    "__version__",
    "build_index",
    "load",
    "read_index",
]

try:
    __version__ = importlib.metadata.version("rice-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0.3.0.dev0"

_MODULES = {
    "CheckpointError": "rice_jax.models.weights",
    "DataError": "rice_jax.types",
    "Index": "rice_jax.index.store",
    "Naming": "rice_jax.recognition.naming",
    "Recognizer": "rice_jax.recognition.recognizer",
    "TrainedModel": "rice_jax.api",
    "build_index": "rice_jax.index.update",
    "load": "rice_jax.api",
    "read_index": "rice_jax.index.store",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
