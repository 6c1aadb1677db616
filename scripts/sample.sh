# Sourced after setup.sh: prepares the sample shop's data sets and encoder. Finished parts are kept, so a killed script
# continues where it stopped.

encoder=weights/sample_encoder
# Each step allocates its buffers anew; huge pages save most of the page faults (docs/performance.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1

# prepare_sample SEED: builds data sets in $built and converts the shipped encoder to a checkpoint in $encoder.
# Two training clips show each of the 491 training products, four queries each of the 100 test products.
prepare_sample() {
    local seed=$1 raw=data/raw/sample-$1 simulate="python data/sample/simulate.py --seed $1"
    built=data/built/sample-$1
    if [ ! -e "$raw/complete" ]; then
        rm -rf "$raw"
        $simulate --products data/sample --out "$raw/train" --galleries validation --clips_per_product 2 \
            --max_frames 12 --test_clips_per_product 1
        $simulate --products data/sample --out "$raw/test" --categories --train_products 1
        touch "$raw/complete"
    fi
    python data/build.py lpr4m --raw_dir "$raw/train" --data_dir "$built" --configs train
    python data/build.py lpr4m --raw_dir "$raw/test" --data_dir "$built" --configs query,gallery
    if [ ! -d "$encoder" ]; then
        python -m rice_jax.convert.clip data/sample/encoder "$encoder"
    fi
}

# prepare_detection SEED: builds the data sets of a detector; call prepare_sample first.
prepare_detection() {
    python data/build.py lpr4m --raw_dir "data/raw/sample-$1/train" --data_dir "$built" --configs detection_train
    python data/build.py lpr4m --raw_dir "data/raw/sample-$1/test" --data_dir "$built" --configs detection_test
}
# require_same_settings OUT SETTINGS…: ends the script if the runs in OUT were made with other settings.
require_same_settings() {
    local path=$1/settings.txt settings=${*:2}
    if [ ! -e "$path" ]; then
        mkdir -p "$1"
        echo "$settings" >"$path"
    elif [ "$(<"$path")" != "$settings" ]; then
        echo "$path: found the settings '$(<"$path")', expected '$settings': give these, or delete $1" >&2
        exit 1
    fi
}
