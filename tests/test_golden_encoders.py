"""Encoders' outputs and gradients against what transformers' models, and X-CLIP's own modules, computed."""

import pytest

from scripts.parity import Case
from scripts.parity_encoders import compare_encoder
from scripts.parity_xclip import compare_xclip
from tests.golden.cases import find

NAMES = ["clip_vision_gelu", "siglip_vision", "dinov2_registers_swiglu", "dinov3_vit", "swin_pad", "timesformer"]
ELSEWHERE = ["clip_vision_quick_gelu", "dinov2", "swin"]  # they have no part that the others do not have


def case(name: str) -> Case:
    return Case(find(f"encoders/{name}"))


@pytest.mark.parametrize("name", NAMES + ELSEWHERE)
def test_an_encoder_computes_what_was_recorded_and_all_of_it_is_compared(name):
    lines = list(compare_encoder(case(name)))
    assert [str(line) for line in lines if not line.holds] == []
    recorded = {key for key in case(name).recorded if not key.startswith(("in/", "params/"))}
    assert {name for line in lines for name in (line.name, *line.keys)} == recorded and len(lines) > 20


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("clip_vision_gelu", "hidden_act", "quick_gelu"),
        ("dinov2_registers_swiglu", "num_attention_heads", 2),
    ],
)
def test_what_no_shape_shows_is_seen(name, setting, value):
    changed = case(name)
    changed.facts["config"][setting] = value
    held = {line.name for line in compare_encoder(changed) if line.holds and line.name.startswith("out/")}
    assert held == {"out/hidden_states/0"}, "only what comes before the blocks"


def test_a_changed_number_is_seen():
    changed = case("siglip_vision")
    changed.arrays["out/pooler_output"][0, 0] += 1e-3
    assert [line.name for line in compare_encoder(changed) if not line.holds] == ["out/pooler_output"]


def test_xclip_computes_what_was_recorded_for_a_video_and_a_page_and_a_changed_number_is_seen():
    recorded = Case(find("xclip/visual"))
    recorded.arrays["out/video/mit0"][0, 0] += 1e-2
    recorded.recorded["grad/video/visual.ln_post.bias"] *= 1.01
    lines = list(compare_xclip(recorded))
    assert {line.name for line in lines if not line.holds} == {"out/video/mit0", "grad/video/visual.ln_post.bias"}
    results = {key for key in recorded.recorded if not key.startswith(("in/", "params/", "cotangent/"))}
    assert {line.name for line in lines} == results and len(lines) > 40


def test_a_class_that_nothing_computes_has_no_lines():
    other = case("siglip_vision")
    other.facts["class"] = "ResNetModel"
    assert list(compare_encoder(other)) == []
