"""What a user is told of re-ranking; `test_engine.py` and `test_decoder_texts.py` test its order."""

import pytest

from rice_jax.config import PmdConfig, TextConfig, VitConfig
from rice_jax.index.about import About
from rice_jax.models.rice import RiceConfig
from rice_jax.recognition.reranking import load_speech


@pytest.mark.parametrize(("pmd", "text"), [(PmdConfig(), TextConfig(512)), (PmdConfig(), None), (None, TextConfig(8))])
def test_a_decoder_of_texts_is_told_if_the_index_has_none_for_it(caplog, pmd, text):
    model = RiceConfig(VitConfig(), pmd=pmd, text=text)
    about = About(model, resize=256, num_frames=10, fingerprint="f", checkpoint="run", calibration=None)
    assert load_speech(about, None, None, []) is None
    told = "The decoder was trained with titles and speech, and the index was made without titles for it"
    assert (told in caplog.text) == bool(pmd and text)
