# Sourced by the scripts that download pictures: runs img2dataset with the output format that the builders read.
#
# Options, before or after the other arguments:
#   --format webdataset|files    output format, tar files by default
#   --processes N, --threads N   on this machine, by default one process per core
#   --spark MASTER               on a cluster, e.g. spark://HOST:7077 (img2dataset's own pyspark distributor; all machines
#                                must see the list and the output under the same paths)

die() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

format=webdataset processes=$(getconf _NPROCESSORS_ONLN) threads=64 master='' positional=()

# parse_arguments ARGUMENTS…: sets the options, and the other arguments as positional.
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

# download URL_LIST OUT: JPEG, short side at most 256 pixels; continues after an interruption.
download() {
    mkdir -p "$(dirname "$2")"
    # Small pictures keep their size, and a JPEG that is not resized keeps its bytes.
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
    # Without an existing session, img2dataset creates one of this machine only.
    SPARK_MASTER=$master exec python -c '
import os

from img2dataset.main import main
from pyspark.sql import SparkSession

session = SparkSession.builder.appName("img2dataset").master(os.environ["SPARK_MASTER"]).getOrCreate()
main()
session.stop()
' "${flags[@]}" --distributor pyspark
}
