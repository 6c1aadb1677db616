#!/usr/bin/env bash
# Measures recognition on whole livestreams of unseen products, gaps included: simulates films, trains the demo with
# three seeds where that has not been done, indexes the films' shops with each, and runs scripts/long_videos.py.
#
#   scripts/long_videos.sh      SEEDS="0 1 2" chooses the seeds, VIDEOS=24 the number of films, at least 3
set -euo pipefail
if ! [ "${VIDEOS:=24}" -ge 3 ]; then
    echo "VIDEOS=$VIDEOS: expected at least 3, a film of each shop" >&2
    exit 1
fi
source "$(dirname "$0")/setup.sh"
source scripts/sample.sh
films=data/raw/films-$VIDEOS
for seed in ${SEEDS:=0 1 2}; do # before the first training
    require_same_settings "runs/demo-$seed"
done
if [ ! -e "$films/truth.jsonl" ]; then
    rm -rf "$films"
    python data/sample/film.py --products data/sample --out "$films" --videos "$VIDEOS"
fi

measured=()
for seed in $SEEDS; do
    [ -e "runs/demo-$seed/report.html" ] || scripts/demo.sh --seed="$seed"
    prepare_sample "$seed"
    index=runs/long_videos/index-$VIDEOS-$seed
    python -m rice_jax.main --config=configs/sample.py --workdir="runs/demo-$seed" --config.seed="$seed" \
        --config.data.data_dir="$built" --config.model.init_from="$encoder" \
        --mode=index --config.index.images="$films/shop.csv" --config.index.directory="$index"
    measured+=(--run "$index" "data/raw/sample-$seed/test")
done
python scripts/long_videos.py --films "$films" --max_gaps=10 "${measured[@]}"
