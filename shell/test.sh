#!/usr/bin/env bash
# Make .venv, install what the tests need, run them. Further arguments go to pytest.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh" # readlink: this script may be called by a link

ensure_env requirements-dev.txt
cd "$ROOT"
# processes of one thread each, since most of the time goes into starting the command line again and again
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
