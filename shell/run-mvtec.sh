#!/usr/bin/env bash
# MVTec AD, all 15 classes, published settings.
#   DATAPATH=/data/mvtec AUGPATH=/data/dtd/images bash shell/run-mvtec.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone (or one name a line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is where the results go.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

need_folder DATAPATH "the folder of MVTec AD with a folder a class"
need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images"
ensure_env requirements.txt
benchmark mvtec "${RESULTS:-$ROOT/results/mvtec}" "$DATAPATH" ckpt 0 1 "carpet grid leather tile wood bottle cable capsule hazelnut metal_nut pill screw toothbrush transistor zipper" "$@"
