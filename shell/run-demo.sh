#!/usr/bin/env bash
# From nothing to a report, without data, weights or a GPU: makes .venv and installs the requirements, makes the demo data
# (two classes), trains both on the CPU with the embedded backbone and the built-in textures, tests, and prints the table and
# the path of report.html.
#   bash shell/run-demo.sh [options of main.py, e.g. --seed 1]
# Run again, it reuses what exists. DEMO_DATA and RESULTS name the folders; another seed needs other RESULTS. NET_FLAGS and
# DATASET_FLAGS hold further options of net and dataset.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

ensure_env requirements.txt
DEMO_DATA=$(absolute "${DEMO_DATA:-$ROOT/results/demo-data}")
RESULTS=$(absolute "${RESULTS:-$ROOT/results/demo}")
echo "making images in $DEMO_DATA, unless they exist; then the training begins" >&2
"$PYTHON" "$ROOT/main.py" demo "$DEMO_DATA" >/dev/null
# small images and few epochs are enough for these two classes and take a PC minutes
# NET_FLAGS and DATASET_FLAGS are meant to be split into words
# shellcheck disable=SC2086
exec "$PYTHON" "$ROOT/main.py" --gpu -1 --results_path "$RESULTS" "$@" \
    net --recipe fast --meta_epochs 16 --local_kept 240 ${NET_FLAGS:-} \
    dataset --resize 256 --imagesize 256 --distribution 2 --fg 0 --num_workers 2 ${DATASET_FLAGS:-} \
    folder "$DEMO_DATA" builtin
