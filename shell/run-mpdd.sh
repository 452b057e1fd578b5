#!/usr/bin/env bash
# MPDD, all 6 classes, published settings.
#   DATAPATH=/data/mpdd AUGPATH=/data/dtd/images bash shell/run-mpdd.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" names the classes to run (or one on each line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is the folder of the results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

need_folder DATAPATH "the folder of MPDD with a folder for each class"
need_folder AUGPATH "a folder of texture images, such as those of DTD"
ensure_env requirements.txt
benchmark mpdd "${RESULTS:-$ROOT/results/mpdd}" "$DATAPATH" ckpt 0 0 "bracket_black bracket_brown bracket_white connector metal_plate tubes" "$@"
