#!/usr/bin/env bash
# WFDD, all 4 classes, published settings.
#   DATAPATH=/data/wfdd AUGPATH=/data/dtd/images bash shell/run-wfdd.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" names the classes to run (or one on each line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is the folder of the results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

need_folder DATAPATH "the folder of WFDD with a folder for each class"
need_folder AUGPATH "a folder of texture images, such as those of DTD"
ensure_env requirements.txt
benchmark wfdd "${RESULTS:-$ROOT/results/wfdd}" "$DATAPATH" ckpt 0 1 "grey_cloth grid_cloth yellow_cloth pink_flower" "$@"
