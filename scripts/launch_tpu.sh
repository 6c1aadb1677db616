#!/usr/bin/env bash
# Trains on a Cloud TPU slice, from a machine with gcloud: creates the slice or reuses the one with that name, installs
# the committed state of this repository, runs the command on all hosts, and continues the run after a preemption.
#
#   NAME=rice ZONE=us-west4-a TYPE=v5litepod-16 SHARE=10.0.0.2:/share scripts/launch_tpu.sh \
#       --config=configs/lpr4m.py --workdir=/mnt/share/runs/lpr4m --config.data.data_dir=/mnt/share/built
#
#   NAME     name of the slice                ZONE     zone of the slice               TYPE     e.g. v5litepod-16, v4-64
#   SHARE    an NFS export (Filestore) that all hosts mount at /mnt/share; needed with several hosts
#   SPOT=1   a cheaper slice that may be preempted                            VERSION  runtime, by default that for TYPE
#   LOGS     directory for the output of all hosts, by default runs/NAME      WAIT     seconds between checks, default 60
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${NAME:?the name of the slice}" "${ZONE:?its zone, e.g. us-west4-a}" "${TYPE:?its type, e.g. v5litepod-16}"
[ $# -gt 0 ] || { echo "expected the arguments of python -m rice_jax.main" >&2; exit 2; }
share=${SHARE:-} logs=${LOGS:-runs/$NAME} wait=${WAIT:-60}
case $TYPE in
    v5litepod*) version=v2-alpha-tpuv5-lite ;;
    v5p*) version=v2-alpha-tpuv5 ;;
    v6e*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
esac
version=${VERSION:-$version}

tpu() {
    local verb=$1
    shift
    gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE"
}

state() { tpu describe "$NAME" --format='value(state)' 2>/dev/null || true; }

create() {
    local said
    # Retries only if there is no capacity.
    until said=$(tpu create "$NAME" --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot} 2>&1); do
        echo "$said" >&2
        grep -qiE 'no more capacity|not enough resources|RESOURCE_EXHAUSTED' <<<"$said" || exit 1
        sleep "$wait"
    done
}

# Returns when the slice is ready, whatever its state was.
prepare_slice() {
    while true; do
        case $(state) in
            READY) return ;;
            "") create ;;
            CREATING | STARTING | RESTARTING | REPAIRING | STOPPING | DELETING) sleep "$wait" ;;
            STOPPED) tpu start "$NAME" ;;
            *) tpu delete "$NAME" --quiet ;; # a preempted slice does not restart by itself
        esac
    done
}

install() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git archive --format=tar.gz --output="$archive" HEAD || exit 1
    # The runtimes' own Python is older than 3.11, so uv installs a newer one.
    tpu scp "$archive" "$NAME:rice_jax.tar.gz" --worker=all && rm "$archive" &&
        tpu ssh "$NAME" --worker=all --command="set -e
        mkdir -p rice_jax && tar -xzf rice_jax.tar.gz -C rice_jax && cd rice_jax
        python3 -m pip install --quiet --user uv
        [ -x .venv/bin/python ] || ~/.local/bin/uv venv --quiet --python=3.12 .venv
        ~/.local/bin/uv pip install --quiet --python=.venv/bin/python -e '.[tpu]'
        if [ -n '$share' ] && ! mountpoint -q /mnt/share; then
            sudo apt-get install --quiet --yes nfs-common >/dev/null
            sudo mkdir -p /mnt/share && sudo mount '$share' /mnt/share
        fi"
}

# Prefixes each line with its host's name, on the terminal and in the log, which outlives the slice.
run() {
    tpu ssh "$NAME" --worker=all --command="set -o pipefail; cd rice_jax
        .venv/bin/python -u -m rice_jax.main --distributed $(printf '%q ' "$@") 2>&1 | sed -u \"s/^/\$(hostname): /\"" \
        2>&1 | tee -a "$logs/launch.log"
}

mkdir -p "$logs"
while true; do
    prepare_slice
    if install && run "$@"; then
        echo "finished; the log is $logs/launch.log"
        echo "the slice still costs: gcloud compute tpus tpu-vm delete $NAME --zone=$ZONE"
        exit
    fi
    sleep "$wait" # a host stops before the slice is reported as preempted
    if [ "$(state)" = READY ]; then
        echo "failed on a slice that is ready, see $logs/launch.log; the same command continues from the last checkpoint" >&2
        exit 1
    fi
    echo "the slice is gone; creating another one and continuing" | tee -a "$logs/launch.log"
done
