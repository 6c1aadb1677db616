#!/usr/bin/env bash
# Trains on a Slurm cluster with one process per GPU, and requeues itself when its time limit is reached.
#
#   sbatch --nodes=2 --time=24:00:00 scripts/launch_slurm.sh \
#       --config=configs/lpr4m.py --workdir=/shared/runs/lpr4m --config.data.data_dir=/shared/built
#
# Options on sbatch's command line override the options below. PYTHON is the interpreter on all nodes, by default
# .venv/bin/python in the directory of the sbatch call (python -m venv .venv; pip install -e '.[gpu]').
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
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit this option of sbatch
code=0
# Every process sees all GPUs of its node and takes the one with its local number.
srun --label --kill-on-bad-exit=1 ${SLURM_GPUS_ON_NODE:+--gpu-bind=none} \
    "${PYTHON:-.venv/bin/python}" -u -m rice_jax.main --distributed "$@" || code=$?
# 143: the run saved a checkpoint after SIGTERM. At the time limit the job is still "running" and may be requeued; a
# canceled job must not be, and Slurm itself requeues a preempted one.
if [ "$code" = 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
