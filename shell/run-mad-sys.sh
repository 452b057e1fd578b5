#!/usr/bin/env bash
# MAD-sys: the five texture classes, at every transparency.
#   DATAPATH=/data/MAD-sys AUGPATH=/data/dtd/images bash shell/run-mad-sys.sh [options of main.py]
# Scored with checkpoints trained on MVTec AD: MODELS, by default those of run-mvtec.sh.
# CLASSES, NET_FLAGS, DATASET_FLAGS and RESULTS as in run-mvtec.sh; each subset gets its own folder of results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

score_subsets MAD-sys "Beta_*" mad-sys "carpet grid leather tile wood" "$@"
