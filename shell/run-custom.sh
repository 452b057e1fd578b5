#!/usr/bin/env bash
# Your own data, a folder a class, in the layout of MVTec AD or any other that NAME folder takes (see the README):
# every class found, or those of CLASSES. Without AUGPATH the built-in textures are used.
#   DATAPATH=/data/custom [AUGPATH=/data/dtd/images] bash shell/run-custom.sh [options of main.py, e.g. --gpu 1]
# CLASSES="a b" takes these classes alone (or one name a line); NET_FLAGS and DATASET_FLAGS hold options of net and dataset;
# RESULTS is where the results go.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

EXAMPLE=DATAPATH=/data/…
need_folder DATAPATH "a folder with a folder of good images a class"
AUGPATH=${AUGPATH:-builtin}
[ "$AUGPATH" = builtin ] || need_folder AUGPATH "a folder of texture pictures, e.g. DTD's images, or the word builtin"
ensure_env requirements.txt
BACKBONE= # wideresnet50 where its weights are to be had, else the one that comes along
benchmark folder "${RESULTS:-$ROOT/results/custom}" "$DATAPATH" ckpt 2 0 "" "$@"
