#!/usr/bin/env bash
# Your own data in the layout of MVTec AD: every class found, or those of CLASSES.
#   DATAPATH=/data/custom AUGPATH=/data/dtd/images bash shell/run-custom.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone; NET_FLAGS and DATASET_FLAGS hold further options of net and dataset;
# RESULTS is where the results go.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_folder DATAPATH "a folder with a folder a class, each with train/good in it"
need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images"
ensure_env requirements.txt
benchmark mvtec "${RESULTS:-$ROOT/results/custom}" "$DATAPATH" ckpt 2 0 "" "$@"
