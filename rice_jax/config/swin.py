"""Settings of Swin transformers."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rice_jax.config.fields import setting


@dataclasses.dataclass(frozen=True)
class SwinSettings:
    """What only a Swin transformer has; the defaults are those of Swin-T. Weights fit only one value of each."""

    patch_size: int = setting(4, "Side of a patch of the first stage; each further stage doubles it.", minimum=1)
    width: int = setting(96, "Width of the first stage; each further stage doubles it.", minimum=1)
    depths: str = setting("2,2,6,2", "Blocks of each stage; every second one has shifted windows.")
    heads: str = setting("3,6,12,24", "Attention heads of each stage.")
    window: int = setting(7, "Side of the windows in which patches attend to each other.", unit="patches", minimum=2)
    mlp_ratio: float = setting(4.0, "Width of an MLP's hidden layer, rounded.", unit="times its stage's width", above=0)
    activation: str = setting(
        "gelu", "Activation of the MLPs, as in `config.model`.", choices=("quick_gelu", "gelu", "gelu_tanh", "silu")
    )
    epsilon: float = setting(1e-5, "Epsilon of the layer norms.", above=0)


@dataclasses.dataclass(frozen=True)
class SwinConfig(SwinSettings):
    """A Swin transformer: its own settings, and those of `config.model` that every encoder has."""

    image_size: int = 224
    embed_dim: int = 512
    dtype: str = "bfloat16"
    remat: str = "none"
    architecture: str = "swin"
    pixels: str = "clip"
    unroll: bool = False

    @property
    def stages(self) -> list[tuple[int, int, int]]:
        """Blocks, heads and width of each stage."""
        sizes = zip(_numbers(self.depths), _numbers(self.heads), strict=True)
        return [(depth, heads, self.width * 2**number) for number, (depth, heads) in enumerate(sizes)]

    @property
    def own(self) -> dict[str, Any]:
        """The settings of the group `config.model.swin`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(SwinSettings)}

    @property
    def switches(self) -> dict[str, Any]:
        """What no parameter's shape shows, as `VitConfig.switches`."""
        return {"architecture": self.architecture, "pixels": self.pixels} | self.own

    def problems(self) -> Iterator[str]:
        """Settings that exclude each other."""
        for name in ("depths", "heads"):
            if not (_numbers(value := getattr(self, name)) and all(_numbers(value))):
                yield (
                    f"config.model.swin.{name}: found {value!r}, expected positive whole numbers with commas between, "
                    "one for each stage"
                )
                return
        if len(_numbers(self.depths)) != len(_numbers(self.heads)):
            yield (
                f"config.model.swin.heads: found {self.heads!r}, expected as many stages as swin.depths "
                f"({self.depths!r})"
            )
            return
        for _, heads, width in self.stages:
            if width % heads:
                yield f"config.model.swin.heads: found {heads} heads in a stage of width {width}, expected a divisor"
        if self.image_size % self.patch_size:
            yield (
                f"config.model.image_size: found {self.image_size}, expected a multiple of swin.patch_size "
                f"({self.patch_size})"
            )


def _numbers(value: str) -> list[int]:
    """The numbers of "2,2,6,2"; [] if it is none."""
    parts = [part.strip() for part in value.split(",")]
    return [int(part) for part in parts] if all(part.isdecimal() and part.isascii() for part in parts) else []
