#!/usr/bin/env bash
# Make .venv, install what the tests need, run them. Further arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ensure_env requirements-dev.txt
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
