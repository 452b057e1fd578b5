#!/usr/bin/env bash
# Make .venv, install what the tests need, run them. Further arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_env requirements-dev.txt
cd "$ROOT"
# a process a core, each with one thread: most of the time goes into starting the command line again and again
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
