#!/usr/bin/env bash
# MAD-sys: the five texture classes over all transparencies found.
#   DATAPATH=/data/MAD-sys AUGPATH=/data/dtd/images bash shell/run-mad-sys.sh [options of main.py]
# Scored with checkpoints trained on MVTec AD: MODELS, by default those of run-mvtec.sh.
# CLASSES, NET_FLAGS, DATASET_FLAGS and RESULTS as in run-mvtec.sh; each subset gets a folder of results of its own.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

need_folder DATAPATH "the folder of MAD-sys with Beta_* folders in it"
MODELS=${MODELS:-$ROOT/results/mvtec/models}
need_folder MODELS "checkpoints of an MVTec AD run (shell/run-mvtec.sh makes them)"
AUGPATH=${AUGPATH:-.} # nothing is trained, so no texture is read
subsets=$(each_subset "Beta_*")
ensure_env requirements.txt
while read -r subset; do
    echo "$(basename "$subset")" >&2
    benchmark mvtec "${RESULTS:-$ROOT/results/mad-sys}/$(basename "$subset")" "$subset" test 0 1 \
        "carpet grid leather tile wood" --models_path "$MODELS" "$@" </dev/null
done <<<"$subsets"
