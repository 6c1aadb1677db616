#!/usr/bin/env bash
# Trains on a Slurm cluster, one process per GPU, and queues itself again when its time is over.
#
#   sbatch --nodes=2 --time=24:00:00 scripts/launch_slurm.sh \
#       --config=configs/lpr4m.py --workdir=/shared/runs/lpr4m --config.data.data_dir=/shared/built
#
# What is asked for below can be changed on sbatch's command line. PYTHON is the interpreter of all nodes, by default
# .venv/bin/python of the directory that sbatch was called in (python -m venv .venv; pip install -e '.[gpu]').
#SBATCH --job-name=rice_jax
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?call it by sbatch}"
[ $# -gt 0 ] || { echo "expected the arguments of python -m rice_jax.main" >&2; exit 2; }
if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ "$SLURM_GPUS_ON_NODE" != "${SLURM_NTASKS_PER_NODE%%(*}" ]; then
    echo "found $SLURM_NTASKS_PER_NODE processes for $SLURM_GPUS_ON_NODE GPUs a node, expected as many: give sbatch equal" \
        "--ntasks-per-node and --gpus-per-node" >&2
    exit 2
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take over what sbatch was asked for
code=0
# Every process sees all GPUs of its node, and takes the one of its own number there.
srun --label --kill-on-bad-exit=1 ${SLURM_GPUS_ON_NODE:+--gpu-bind=none} \
    "${PYTHON:-.venv/bin/python}" -u -m rice_jax.main --distributed "$@" || code=$?
# 143: SIGTERM came and the run is saved. If the time is over, the job is still "running" and may queue again; if it was
# cancelled it must not, and if it was preempted Slurm does that.
if [ "$code" = 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
