#!/usr/bin/env bash
# Sets up and runs linter, formatter's check and tests, on all cores; arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
JAX_PLATFORMS=cpu python -m pytest -n auto --dist loadfile "$@"
