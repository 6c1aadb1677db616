# Sourced by the scripts that download pictures: calls img2dataset as the builders read what it writes.
#
# Options, before or after the other arguments:
#   --format webdataset|files    what to write; tars by default
#   --processes N, --threads N   on this machine, by default one process a core
#   --spark MASTER               on a cluster, such as spark://HOST:7077 (img2dataset's own pyspark distributor; all its
#                                machines must see the list and the output under the same paths)

die() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

format=webdataset processes=$(getconf _NPROCESSORS_ONLN) threads=64 master='' positional=()

# parse_arguments ARGUMENTS…: sets the options, and what else there is as positional.
parse_arguments() {
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
    [[ $format =~ ^(webdataset|files)$ ]] || die "--format: found $format, expected webdataset or files"
    command -v img2dataset > /dev/null || die "found no img2dataset on PATH; install it: pip install img2dataset"
}

# download URL_LIST OUT: JPEG, short side of at most 256 pixels; goes on where it was interrupted.
download() {
    mkdir -p "$(dirname "$2")"
    # Small pictures stay as they are, and a JPEG that need not be resized keeps its bytes.
    local flags=(
        --url_list "$1" --input_format txt --output_folder "$2" --output_format "$format"
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
}
