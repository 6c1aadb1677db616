#!/usr/bin/env bash
# Downloads ROPE's pictures with img2dataset as the data set's builder reads them: JPEG, short side at most 256 pixels.
#
#   scripts/download_rope.sh [--format webdataset|files] [--processes N] [--threads N] [--spark MASTER] LIST OUT
#
# LIST is one of ROPE's files that name pictures (training_page_images.txt, training_video_frames.txt,
# training_live_clips.txt, or the same files for testing), or a list with one URL per line, e.g. the doctor's
# retry_urls.txt. OUT is a folder in the raw directory, e.g. RAW/videos_img2dataset. scripts/img2dataset.sh documents the
# options. Names become URLs, in the list OUT_urls.txt, with the prefix that ROPE's authors give; ROPE_URL_PREFIX
# overrides it.
# After an interruption, re-run the script with the same LIST: finished shards are skipped. Every LIST needs an OUT of
# its own.
set -euo pipefail
source "$(dirname "$0")/img2dataset.sh"
parse_arguments "$@"
[ "${#positional[@]}" -eq 2 ] || die "found ${#positional[@]} arguments, expected LIST and OUT"
list=${positional[0]} out=${positional[1]%/}
[ -f "$list" ] || die "$list: found no such file, expected one of ROPE's files that name pictures, or a list of URLs"
[ -s "$list" ] || die "$list: found an empty file, expected names of pictures or URLs"
if [[ $(head -n 1 "$list") != *://* ]]; then
    urls=${out}_urls.txt
    mkdir -p "$(dirname "$out")"
    prefix=$(sed 's/[&|\\]/\\&/g' <<< "${ROPE_URL_PREFIX:-https://js-ad.a.yximgs.com/bs2/ad-material-video/}")
    # Written to another name and moved, so that an interruption leaves no incomplete list.
    sed -E $'s|\r$||; s|.*,||; s|^ *||; s| *$||; /^$/d; s|^|'"$prefix|" "$list" > "$urls.partial"
    mv "$urls.partial" "$urls"
    list=$urls
fi
download "$list" "$out"
