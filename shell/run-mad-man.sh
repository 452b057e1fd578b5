#!/usr/bin/env bash
# MAD-man: the 15 classes of MVTec AD, for every person.
#   DATAPATH=/data/MAD-man AUGPATH=/data/dtd/images bash shell/run-mad-man.sh [options of main.py]
# Scored with checkpoints trained on MVTec AD: MODELS, by default those of run-mvtec.sh.
# CLASSES, NET_FLAGS, DATASET_FLAGS and RESULTS as in run-mvtec.sh; each subset gets its own folder of results.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

score_subsets MAD-man "Person_*" mad-man "$MVTEC_AD" "$@"
