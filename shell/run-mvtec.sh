#!/usr/bin/env bash
# MVTec AD, all 15 classes, published settings.
#   DATAPATH=/data/mvtec AUGPATH=/data/dtd/images bash shell/run-mvtec.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" names the classes to run (or one on each line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is the folder of the results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

need_folder DATAPATH "the folder of MVTec AD with a folder for each class"
need_folder AUGPATH "a folder of texture images, such as those of DTD"
ensure_env requirements.txt
benchmark mvtec "${RESULTS:-$ROOT/results/mvtec}" "$DATAPATH" ckpt 0 1 "$MVTEC_AD" "$@"
