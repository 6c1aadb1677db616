"""What a user is told of re-ranking; `test_engine.py` tests its order."""

import pytest

from rice_jax.config import PmdConfig, TextConfig, VitConfig
from rice_jax.index.about import About
from rice_jax.models.rice import RiceConfig
from rice_jax.recognition.reranking import match_weight


@pytest.mark.parametrize("text", [None, TextConfig(512)])
def test_a_decoder_that_was_trained_with_texts_is_told(caplog, text):
    model = RiceConfig(VitConfig(), pmd=PmdConfig(), text=text)
    about = About(model, resize=256, num_frames=10, fingerprint="f", checkpoint="run", calibration=None)
    assert match_weight(about, by_frames=False) is None
    told = "The decoder was trained with titles and speech, and gets neither here"
    assert (told in caplog.text) == (text is not None)
