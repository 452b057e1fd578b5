#!/usr/bin/env bash
# From nothing to a report, without data, weights or a GPU: makes .venv, installs, makes the demo data (two classes), trains
# both on the CPU with the embedded backbone and the built-in textures, tests, prints the table and where report.html lies.
#   bash shell/run-demo.sh [options of main.py, e.g. --seed 1]
# Run again, it reuses what is there. DEMO_DATA and RESULTS say where, other seeds want other RESULTS; NET_FLAGS and
# DATASET_FLAGS hold further options.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

ensure_env requirements.txt
DEMO_DATA=$(absolute "${DEMO_DATA:-$ROOT/results/demo-data}")
RESULTS=$(absolute "${RESULTS:-$ROOT/results/demo}")
echo "making pictures in $DEMO_DATA, unless they are there; then the training begins" >&2
"$PYTHON" "$ROOT/main.py" demo "$DEMO_DATA" >/dev/null
# small pictures, a small discriminator, few epochs: enough for these two, and a PC has it in minutes
# NET_FLAGS and DATASET_FLAGS are meant to be split into words
# shellcheck disable=SC2086
exec "$PYTHON" "$ROOT/main.py" --gpu -1 --results_path "$RESULTS" "$@" \
    net -b resnet18_half --meta_epochs 32 --eval_epochs 32 --select last --lr 0.0003 --dsc_hidden 256 ${NET_FLAGS:-} \
    dataset --resize 256 --imagesize 256 --distribution 2 --fg 0 --num_workers 2 ${DATASET_FLAGS:-} \
    folder "$DEMO_DATA" builtin
