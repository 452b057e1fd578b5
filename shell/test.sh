#!/usr/bin/env bash
# Make .venv, install what the tests need, run them. Further arguments go to pytest.
self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called by a link; macOS has no readlink -f
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
source "$(dirname "$self")/common.sh"

ensure_env requirements-dev.txt
cd "$ROOT"
# a process a core, each with one thread: most of the time goes into starting the command line again and again
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
