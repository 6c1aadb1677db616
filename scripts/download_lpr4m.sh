#!/usr/bin/env bash
# Downloads LPR4M's pictures with img2dataset as the data set's builder reads them: JPEG, short side at most 256 pixels.
#
#   scripts/download_lpr4m.sh [--format webdataset|files] [--processes N] [--threads N] [--spark MASTER] URL_LIST OUT
#
# URL_LIST is a text file with one URL per line, or a folder of such files; OUT is a folder in the raw directory, e.g.
# RAW/frames_img2dataset. scripts/img2dataset.sh documents the options.
# After an interruption, re-run the script with the same URL_LIST: finished shards are skipped. A shard is 10,000 lines of
# the list, so every list, e.g. the doctor's retry_urls.txt, needs an OUT of its own.
set -euo pipefail
source "$(dirname "$0")/img2dataset.sh"
parse_arguments "$@"
[ "${#positional[@]}" -eq 2 ] || die "found ${#positional[@]} arguments, expected URL_LIST and OUT"
[ -e "${positional[0]}" ] || die "${positional[0]}: found no such file, expected a list of URLs"
download "${positional[@]}"
