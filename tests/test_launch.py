"""The launch scripts, with stand-ins for gcloud, srun and the rest that record how they are called."""

import os
import subprocess

import pytest

from tests.fixtures import ROOT

RUN = ["--config=configs/lpr4m.py", "--workdir=/mnt/share/a run"]
SLICE = dict(NAME="rice", ZONE="us-west4-a", TYPE="v5litepod-16", SHARE="10.0.0.2:/share", WAIT="0")
# A slice whose first creation fails for $CROWDED, and whose first run fails and leaves it $AFTERWARDS.
GCLOUD = """
first() { [ ! -e "$PLACE/$1" ] && touch "$PLACE/$1"; }
case "$4 $*" in
    describe*) cat "$PLACE/state" ;;
    create*) if [ -n "$CROWDED" ] && first create; then echo "$CROWDED" >&2; exit 1; fi
        echo READY >"$PLACE/state" ;;
    delete*) rm "$PLACE/state" ;;
    ssh*rice_jax.main*) echo "host-0: step 1"
        if [ -n "$AFTERWARDS" ] && first run; then echo "$AFTERWARDS" >"$PLACE/state"; exit 255; fi ;;
esac
"""
SLURM = dict(SLURM_JOB_ID="7", SLURM_NTASKS_PER_NODE="2", SLURM_GPUS_ON_NODE="2", SLURM_CPUS_PER_TASK="3")


@pytest.fixture
def launch(tmp_path):
    """Runs a script with stand-ins {name: body}; returns its result and their calls, a line each."""

    def launch(script: str, stand_ins: dict[str, str], *arguments: str, **environment: str):
        for name, body in stand_ins.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/usr/bin/env bash\necho {name} "${{@@Q}}" >>"$PLACE/calls"\n{body}')
            path.chmod(0o755)
        variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PLACE": str(tmp_path)}
        variables |= {"LOGS": str(tmp_path / "logs"), "SLURM_SUBMIT_DIR": str(tmp_path)} | environment
        command = ["bash", ROOT / "scripts" / script, *arguments]
        result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
        return result, (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []

    return launch


def tpu_verbs(calls: list[str]) -> list[str]:
    verbs = [call.split("'")[7] for call in calls if call.startswith("gcloud")]
    return [verb for verb in verbs if verb != "describe"]


def test_a_preempted_slice_is_made_again_and_the_run_goes_on(launch, tmp_path):
    settings = dict(SPOT="1", CROWDED="There is no more capacity in the zone", AFTERWARDS="PREEMPTED")
    result, calls = launch("launch_tpu.sh", {"gcloud": GCLOUD, "git": ""}, *RUN, **SLICE, **settings)
    assert result.returncode == 0, result.stderr
    once = ["create", "scp", "ssh", "ssh"]
    assert tpu_verbs(calls) == ["create", *once, "delete", *once]
    made = next(call for call in calls if "'create'" in call)
    for flag in ("rice", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"):
        assert f"'{flag}'" in made
    assert all("'--zone=us-west4-a'" in call for call in calls if call.startswith("gcloud"))
    _, install, run = (call for call in calls[-6:] if "'--worker=all'" in call)
    assert "mount" in install and "10.0.0.2:/share" in install and ".[tpu]" in install
    assert "rice_jax.main --distributed --config=configs/lpr4m.py --workdir=/mnt/share/a\\\\ run" in run
    assert (tmp_path / "logs" / "launch.log").read_text().count("host-0: step 1") == 2
    assert "tpu-vm delete rice" in result.stdout, "says that it still costs"


@pytest.mark.parametrize(
    ("settings", "verbs", "expected"),
    [
        (dict(AFTERWARDS="READY"), ["create", "scp", "ssh", "ssh"], "failed on a slice that is ready"),
        (dict(CROWDED="permission denied"), ["create"], "permission denied"),
        (dict(TYPE=""), [], "its type, e.g. v5litepod-16"),
    ],
)
def test_what_another_try_would_not_mend_stops(launch, settings, verbs, expected):
    settings = dict(AFTERWARDS="", CROWDED="") | SLICE | settings
    result, calls = launch("launch_tpu.sh", {"gcloud": GCLOUD, "git": ""}, *RUN, **settings)
    assert result.returncode == 1 and expected in result.stderr
    assert tpu_verbs(calls) == verbs


@pytest.mark.parametrize(
    ("code", "state", "queued"),
    [("0", "RUNNING", False), ("143", "RUNNING", True), ("143", "COMPLETING", False), ("1", "RUNNING", False)],
)
def test_a_slurm_job_queues_again_when_its_time_is_over(launch, code, state, queued):
    stand_ins = {"srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": ""}
    result, calls = launch("launch_slurm.sh", stand_ins, *RUN, **SLURM)
    assert result.returncode == int(code), result.stderr
    assert calls[0].startswith("srun '--label' '--kill-on-bad-exit=1' '--gpu-bind=none' '.venv/bin/python' '-u' '-m'")
    assert calls[0].endswith("'--distributed' '--config=configs/lpr4m.py' '--workdir=/mnt/share/a run'")
    assert ("scontrol 'requeue' '7'" in calls) == queued


def test_a_slurm_job_has_a_process_for_each_gpu(launch):
    result, calls = launch("launch_slurm.sh", {"srun": ""}, *RUN, **SLURM | {"SLURM_GPUS_ON_NODE": "4"})
    assert result.returncode == 2 and "found 2 processes for 4 GPUs a node" in result.stderr
    assert not calls
