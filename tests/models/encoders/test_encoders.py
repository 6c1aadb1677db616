"""The tables of encoders."""

from rice_jax.config.model import OF_PATCHES, OF_VIDEOS
from rice_jax.models.encoders import ENCODERS, VIDEO_ENCODERS


def test_the_settings_and_the_tables_have_the_same_encoders():
    assert {*OF_VIDEOS} == {*VIDEO_ENCODERS}
    assert {*OF_PATCHES} <= {*ENCODERS}
