import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rice_jax.config import ConfigError, MeshConfig
from rice_jax.parallel.mesh import create_mesh
from scripts import compile_for_tpu
from scripts.benchmarks.hlo import Collective, collectives
from tests.settings import model_of, small_config, small_swin
from tests.tasks.cope_run import cope_config

ROOT = Path(__file__).resolve().parents[1]

# As a compiler for TPUs writes it, without the parts that are not read.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%body (state: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %state = (s32[]{:T(128)}, f32[4,6]{1,0:T(8,128)}) parameter(0)
  %part = f32[4,6]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %all-reduce.1 = f32[4,6]{1,0:T(8,128)} all-reduce(%part), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %going_on = bf16[16,3]{1,0:T(8,128)(2,1)} fusion(%part), kind=kCustom, calls=%meanwhile
  ROOT %next = (s32[]{:T(128)}, f32[4,6]{1,0:T(8,128)}) tuple(%number, %all-reduce.1)
}

%meanwhile (param_2: bf16[2,3]) -> bf16[16,3] {
  %param_2 = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.10 = bf16[16,3]{1,0:T(8,128)(2,1)} all-gather(%param_2), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_0','axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%condition (state.1: (s32[], f32[4,6])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[4,6]{1,0:T(8,128)}) parameter(0)
  %twelve = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%number.1, %twelve), direction=LT
}

%first_half (param_0: bf16[2,3]) -> bf16[16,3] {
  %param_0 = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.8 = bf16[16,3]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_0','axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%second_half (param_1: bf16[2,3]) -> bf16[16,3] {
  %param_1 = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.9 = bf16[16,3]{1,0:T(8,128)(2,1)} all-gather(%param_1), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_0','axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (input: bf16[8,5]) -> bf16[2,5] {
  %input = bf16[8,5]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.2 = bf16[8,5]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,2},{1,3}}, to_apply=%add
  ROOT %part.1 = bf16[2,5]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.2, %place, %zero), dynamic_slice_sizes={2,5}
}

ENTRY %main (a: f32[4,6], b: bf16[2,3]) -> f32[4,6] {
  %a = f32[4,6]{1,0:T(8,128)} parameter(0)
  %b = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(1)
  %loop = (s32[]{:T(128)}, f32[4,6]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %begun = bf16[16,3]{1,0:T(8,128)(2,1)} fusion(%b), kind=kCustom, calls=%first_half
  %gathered = bf16[16,3]{1,0:T(8,128)(2,1)} fusion(%begun), kind=kCustom, calls=%second_half
  %scattered = bf16[2,5]{1,0:T(8,128)(2,1)} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter.1
  %all-gather-start = (bf16[2,3]{1,0}, bf16[16,3]{1,0}) all-gather-start(%b), channel_id=1, replica_groups=[1,8]<=[8]
  %all-gather-done = bf16[16,3]{1,0} all-gather-done(%all-gather-start)
  %scatter = f32[1,6]{1,0} reduce-scatter(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
  %both = (f32[4,6]{1,0}, /*index=1*/f32[]) all-reduce(%a, %one), replica_groups=[1,8]<=[8], to_apply=%add
  %permute = (f32[4,6]{1,0}, f32[4,6]{1,0}, u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  ROOT %result = f32[4,6]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_collectives_of_a_program():
    assert set(collectives(PROGRAM)) == {
        Collective("all-reduce", "f32[4,6]", 4, 96, False, 12),
        Collective("all-reduce", "f32[4,6] f32[]", 8, 100, False, 1),
        Collective("all-gather", "bf16[16,3]", 8, 96, True, 2),
        Collective("reduce-scatter", "f32[4,6]", 4, 96, False, 1),
        Collective("reduce-scatter", "bf16[8,5]", 2, 80, False, 1),
        Collective("collective-permute", "f32[4,6]", 0, 96, True, 1),
    }


def test_what_leaves_a_chip():
    sent = [(one.kind, one.runs, one.sent) for one in collectives(PROGRAM)]
    assert sent == [
        ("all-reduce", 12, 2 * 3 / 4 * 96 * 12),
        ("all-reduce", 1, 2 * 7 / 8 * 100),
        ("all-gather", 2, 7 / 8 * 96 * 2),
        ("collective-permute", 1, 96),
        ("reduce-scatter", 1, 3 / 4 * 96),
        ("reduce-scatter", 1, 1 / 2 * 80),
    ]


@pytest.mark.parametrize(("limit", "compiled"), [(100, [96, 192]), (40, [96, 40]), (300, [96, 192, 384, 296])])
def test_the_largest_batch(monkeypatch, limit, compiled):
    """Eight chips that hold so many pairs: what does not fit says by how much, and then less is tried."""
    seen = []

    def compile_program(batch_size, chip):
        seen.append(batch_size)
        if batch_size > limit:
            raise compile_for_tpu.TooLarge(f"Used {batch_size}.0G of {limit}.0G hbm")
        return compile_for_tpu.Program({"aliased": 0}, 0, 0, [])

    monkeypatch.setattr(compile_for_tpu, "steps", lambda config, mesh: {"training": config.data.batch_size})
    monkeypatch.setattr(compile_for_tpu, "compile_program", compile_program)
    largest = compile_for_tpu.largest_batch(
        small_config(data__batch_size=96), jax.devices(), compile_for_tpu.CHIPS["v4"]
    )
    assert largest == limit // 8 * 8 and seen == compiled


def test_a_program_that_the_compiler_takes_but_that_needs_more_than_there_is():
    lower = lambda: jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2**18,), "float32"))  # noqa: E731
    needed = compile_for_tpu.compile_program(lower, compile_for_tpu.Chip(memory=1.0, peak=1.0, link=1.0)).needed
    assert needed >= 2 * 2**20
    with pytest.raises(compile_for_tpu.TooLarge, match=r"It needs 0\.00G of 0\.001G"):
        compile_for_tpu.compile_program(lower, compile_for_tpu.Chip(memory=0.001, peak=1.0, link=1.0))


def test_batches_and_the_number_of_devices():
    """A training batch has to divide; the evaluation's is padded."""
    mesh = create_mesh(MeshConfig())
    with pytest.raises(ConfigError, match="config.data.batch_size: found 12, .* 8 devices; the nearest are 8 and 16"):
        compile_for_tpu.steps(small_config(data__batch_size=12), mesh)
    steps = compile_for_tpu.steps(small_config(data__batch_size=16, eval__batch_size=12), mesh)
    assert steps["embedding images"]().out_info.embedding.shape == (16, 16)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (small_config(), "Training on 8 pairs takes 0 · 10⁹ operations of every chip or more:"),
        (small_swin(), "fewest operations are not known. config.model.architecture: found 'swin', expected 'vit'"),
    ],
    ids=["vit", "swin"],
)
def test_the_fewest_operations_are_told_where_they_are_known(monkeypatch, capsys, config, expected):
    monkeypatch.setattr(compile_for_tpu, "steps", lambda config, mesh: {})
    assert compile_for_tpu.report(config, jax.devices(), compile_for_tpu.CHIPS["v5e"])
    out = capsys.readouterr().out
    assert "The least that a chip sends in a training step" in out and expected in out


def test_what_cannot_be_compiled():
    with pytest.raises(ConfigError, match=r"--topology: found 'v3:2x2', expected one of v4, v5e, v5p, v6e and a size"):
        compile_for_tpu.chip_of("v3:2x2")


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"libtpu, is not installed: pip install -e '\.\[tpu\]'"):
        compile_for_tpu.devices_of("v5e:2x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not installed")
def test_a_small_model_is_compiled_for_a_slice(tmp_path):
    """In a process of its own, as libtpu stays loaded."""
    config = tmp_path / "small.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\nfrom tests.settings import small_values\n\n\n"
        "def get_config():\n    return ConfigDict(small_values(data__batch_size=16))\n"
    )
    command = [sys.executable, "scripts/compile_for_tpu.py", f"--config={config}", "--topology=v5e:2x4"]
    command.append("--config.eval.batch_size=16")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in ("training", "embedding images", "embedding videos"):
        assert re.search(rf"^{name}\n  memory +\d+\.\d+ GiB", done.stdout, re.MULTILINE), done.stdout
    assert "all-reduce" in done.stdout and "8 chips of 15.75 GiB" in done.stdout


def test_cope_is_compiled_and_no_chip_gets_all_centers_or_their_logits(monkeypatch, capsys):
    config = cope_config(data__batch_size=16, model__cope__num_classes=5000, mesh__fsdp=4, mesh__data=-1)
    mesh = create_mesh(config.mesh)
    program = compile_for_tpu.compile_program(
        compile_for_tpu.steps(config, mesh)["training"], compile_for_tpu.Chip(memory=1.0, peak=1.0, link=1.0)
    )
    rows = model_of(config).num_classes
    assert rows == 5120 and program.collectives
    shapes = [one.shape for one in program.collectives]
    assert not any(f"[{rows},8]" in shape or f",{rows}]" in shape for shape in shapes)
    sent = compile_for_tpu.least_sent(config, 8, parameters=1_000_000)
    assert sent["centers"] == 2 * (1 - 4 / 8) * rows / 4 * 8 * 4
    assert sent["classes"] == 2 * 3 / 4 * 16 * 4 / 8 * 8 * 4 and sent["embeddings"] == 2 * 7 / 8 * 2 * 16 * 8 * 4
    assert sent["gradients"] == 2 * 7 / 8 * (1_000_000 - rows * 8) * 4
    monkeypatch.setattr(compile_for_tpu, "steps", lambda config, mesh: {})
    assert compile_for_tpu.report(config, jax.devices(), compile_for_tpu.CHIPS["v5e"])
    assert "centers" in capsys.readouterr().out
