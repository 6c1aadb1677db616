#!/usr/bin/env bash
# Downloads LPR4M's pictures with img2dataset, as its builder reads them: JPEG, short side of at most 256 pixels.
#
#   scripts/download_lpr4m.sh [--format webdataset|files] [--processes N] [--threads N] [--spark MASTER] URL_LIST OUT
#
# URL_LIST is a text file of one URL a line, or a folder of such files; OUT is a folder below the raw directory, such as
# RAW/frames_img2dataset. scripts/img2dataset.sh tells of the options.
# Run it again with the same URL_LIST after an interruption: shards that are finished are passed over. A shard is a run
# of 10,000 lines of the list, so another list, such as the doctor's retry_urls.txt, needs an OUT of its own.
set -euo pipefail
source "$(dirname "$0")/img2dataset.sh"
parse_arguments "$@"
[ "${#positional[@]}" -eq 2 ] || die "found ${#positional[@]} arguments, expected URL_LIST and OUT"
[ -e "${positional[0]}" ] || die "${positional[0]}: found no such file, expected a list of URLs"
download "${positional[@]}"
