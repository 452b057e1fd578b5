#!/usr/bin/env bash
# WFDD, all 4 classes, published settings.
#   DATAPATH=/data/wfdd AUGPATH=/data/dtd/images bash shell/run-wfdd.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone (or one name a line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is where the results go.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

need_folder DATAPATH "the folder of WFDD with a folder a class"
need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images"
ensure_env requirements.txt
benchmark wfdd "${RESULTS:-$ROOT/results/wfdd}" "$DATAPATH" ckpt 0 1 "grey_cloth grid_cloth yellow_cloth pink_flower" "$@"
