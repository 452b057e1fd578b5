#!/usr/bin/env bash
# VisA, all 12 classes, published settings.
#   DATAPATH=/data/visa AUGPATH=/data/dtd/images bash shell/run-visa.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone; NET_FLAGS and DATASET_FLAGS hold further options of net and dataset;
# RESULTS is where the results go.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_folder DATAPATH "the folder of VisA with split_csv in it"
need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images"
ensure_env requirements.txt
benchmark visa "${RESULTS:-$ROOT/results/visa}" "$DATAPATH" ckpt 0 1 "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum" "$@"
