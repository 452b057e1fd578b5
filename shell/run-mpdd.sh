#!/usr/bin/env bash
# MPDD, all 6 classes, published settings.
#   DATAPATH=/data/mpdd AUGPATH=/data/dtd/images bash shell/run-mpdd.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone; NET_FLAGS and DATASET_FLAGS hold further options of net and dataset;
# RESULTS is where the results go.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_folder DATAPATH "the folder of MPDD with a folder a class"
need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images"
ensure_env requirements.txt
benchmark mpdd "${RESULTS:-$ROOT/results/mpdd}" "$DATAPATH" ckpt 0 0 "bracket_black bracket_brown bracket_white connector metal_plate tubes" "$@"
