#!/usr/bin/env bash
# VisA, all 12 classes, published settings.
#   DATAPATH=/data/visa AUGPATH=/data/dtd/images bash shell/run-visa.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone (or one name a line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is where the results go.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

need_folder DATAPATH "the folder of VisA with split_csv in it"
need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images"
ensure_env requirements.txt
benchmark visa "${RESULTS:-$ROOT/results/visa}" "$DATAPATH" ckpt 0 1 "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum" "$@"
