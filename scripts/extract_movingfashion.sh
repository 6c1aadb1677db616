#!/usr/bin/env bash
# Extracts one frame per second from MovingFashion's videos, in the layout that the data set's builder reads.
#
#   scripts/extract_movingfashion.sh RAW [PROCESSES]
#
# RAW/videos/NAME.mp4 becomes RAW/frames/NAME/0000.jpg, 0001.jpg, …, with PROCESSES processes (default: one per core).
# The script is safe to re-run after an interruption: frames are written to a hidden folder that is renamed when the
# video is done, so a folder is complete or absent, and videos that have one are skipped.
set -euo pipefail

die() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

extract() {
    local video=$1 name partial messages
    name=$(basename "${video%.*}")
    [ ! -d "$frames/$name" ] || return 0
    partial=$frames/.$name.partial
    rm -rf "$partial"
    mkdir "$partial"
    # -nostdin: otherwise ffmpeg would read the input of xargs.
    if messages=$(ffmpeg -nostdin -v error -i "$video" -vf fps=1 -q:v 2 -start_number 0 "$partial/%04d.jpg" 2>&1) &&
        [ -e "$partial/0000.jpg" ]; then
        mv "$partial" "$frames/$name"
        [ -z "$messages" ] || echo "$video: extracted, but ffmpeg says: $messages" >&2
    else
        rm -rf "$partial"
        echo "$video: no frames; ffmpeg says: $messages" >&2
        return 1
    fi
}

raw=${1:-} processes=${2:-$(getconf _NPROCESSORS_ONLN)}
[ -n "$raw" ] || die "found no argument, expected RAW, the directory that holds videos/"
[ -d "$raw/videos" ] || die "$raw/videos: found no such directory, expected the data set's videos"
command -v ffmpeg > /dev/null || die "found no ffmpeg on PATH; install it (it is in every Linux distribution)"
export frames=$raw/frames
export -f extract
mkdir -p "$frames"
status=0
find "$raw/videos" -name '*.mp4' -print0 | sort -z |
    xargs -0 -r -n 1 -P "$processes" bash -euc 'extract "$1"' extract || status=1
videos=$(find "$raw/videos" -name '*.mp4' | wc -l)
extracted=$(find "$frames" -mindepth 1 -maxdepth 1 -type d ! -name '.*' | wc -l)
echo "$frames: $((extracted)) of $((videos)) videos have frames" >&2  # $((…)) removes the blanks that some versions of wc print
exit "$status"
