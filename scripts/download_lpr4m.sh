#!/usr/bin/env bash
# Downloads LPR4M's pictures with img2dataset, as its builder reads them: JPEG, short side of at most 256 pixels.
#
#   scripts/download_lpr4m.sh [--format webdataset|files] [--processes N] [--threads N] [--spark MASTER] URL_LIST OUT
#
# URL_LIST is a text file of one URL a line, or a folder of such files; OUT is a folder below the raw directory, such as
# RAW/frames_img2dataset. N processes, by default one a core, run on this machine; --spark MASTER, such as
# spark://HOST:7077, runs on a cluster (img2dataset's own pyspark distributor; all its machines must see URL_LIST and
# OUT).
# Run it again with the same URL_LIST after an interruption: shards that are finished are passed over. A shard is a run
# of 10,000 lines of the list, so another list, such as the doctor's retry_urls.txt, needs an OUT of its own.
set -euo pipefail

die() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

format=webdataset processes=$(getconf _NPROCESSORS_ONLN) threads=64 master='' positional=()
while [ $# -gt 0 ]; do
    case $1 in
    --format | --processes | --threads | --spark)
        [ $# -gt 1 ] || die "found $1 without a value"
        case $1 in
        --format) format=$2 ;;
        --processes) processes=$2 ;;
        --threads) threads=$2 ;;
        --spark) master=$2 ;;
        esac
        shift 2
        ;;
    -*) die "found $1, expected --format, --processes, --threads or --spark" ;;
    *)
        positional+=("$1")
        shift
        ;;
    esac
done
[ "${#positional[@]}" -eq 2 ] || die "found ${#positional[@]} arguments, expected URL_LIST and OUT"
urls=${positional[0]} out=${positional[1]}
[ -e "$urls" ] || die "$urls: found no such file, expected a list of URLs"
[[ $format =~ ^(webdataset|files)$ ]] || die "--format: found $format, expected webdataset or files"
command -v img2dataset > /dev/null || die "found no img2dataset on PATH; install it: pip install img2dataset"
mkdir -p "$(dirname "$out")"

# Small pictures stay as they are, and a JPEG that need not be resized keeps its bytes.
flags=(
    --url_list "$urls" --input_format txt --output_folder "$out" --output_format "$format"
    --image_size 256 --resize_mode keep_ratio --resize_only_if_bigger True --skip_reencode True --encode_quality 95
    --number_sample_per_shard 10000 --incremental_mode incremental --retries 2
    --processes_count "$processes" --thread_count "$threads"
)
if [ -z "$master" ]; then
    exec img2dataset "${flags[@]}" --distributor multiprocessing
fi
python -c 'import pyspark' 2> /dev/null || die "--spark: found no pyspark, expected it: pip install pyspark"
# img2dataset makes a session of this machine only, unless there is one.
SPARK_MASTER=$master exec python -c '
import os

from img2dataset.main import main
from pyspark.sql import SparkSession

session = SparkSession.builder.appName("img2dataset").master(os.environ["SPARK_MASTER"]).getOrCreate()
main()
session.stop()
' "${flags[@]}" --distributor pyspark
