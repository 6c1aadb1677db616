#!/usr/bin/env bash
# Downloads ROPE's pictures with img2dataset, as its builder reads them: JPEG, short side of at most 256 pixels.
#
#   scripts/download_rope.sh [--format webdataset|files] [--processes N] [--threads N] [--spark MASTER] LIST OUT
#
# LIST is one of ROPE's files that name pictures (training_page_images.txt, training_video_frames.txt,
# training_live_clips.txt or their twins for testing), or a list of URLs, one a line, such as the doctor's
# retry_urls.txt. OUT is a folder below the raw directory, such as RAW/videos_img2dataset. scripts/img2dataset.sh tells
# of the options. Names become URLs, in the list OUT_urls.txt, by the prefix that ROPE's authors give; ROPE_URL_PREFIX
# says otherwise.
# Run it again with the same LIST after an interruption: shards that are finished are passed over. Another LIST needs an
# OUT of its own.
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
    # Written beside its place and moved: an interruption leaves no part of a list under its name.
    sed -E 's|.*,||; s|^ *||; s| *$||; s|^|'"${ROPE_URL_PREFIX:-https://js-ad.a.yximgs.com/bs2/ad-material-video/}"'|' \
        "$list" > "$urls.partial"
    mv "$urls.partial" "$urls"
    list=$urls
fi
download "$list" "$out"
