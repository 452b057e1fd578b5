#!/usr/bin/env bash
# VisA, all 12 classes, published settings.
#   DATAPATH=/data/visa AUGPATH=/data/dtd/images bash shell/run-visa.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" names the classes to run (or one on each line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is the folder of the results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

need_folder DATAPATH "the folder of VisA with split_csv in it"
need_folder AUGPATH "a folder of texture images, such as those of DTD"
ensure_env requirements.txt
benchmark visa "${RESULTS:-$ROOT/results/visa}" "$DATAPATH" ckpt 0 1 "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum" "$@"
