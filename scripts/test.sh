#!/usr/bin/env bash
# Sets up, and runs the linter, the formatter's check, the type checker and the tests, on all cores.
#
#   scripts/test.sh           everything
#   scripts/test.sh --fast    without the type checker and the tests that are marked as slow
#
# All further arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
unset PYTHONDONTWRITEBYTECODE # modules that pytest and jaxtyping have rewritten are kept for the next run
ruff check .
ruff format --check .
if [ "${1:-}" = --fast ]; then
    set -- -m "not slow" "${@:2}"
else
    mypy
fi
# The files that take longest come first (tests/conftest.py), so that no core waits for another at the end.
JAX_PLATFORMS=cpu python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
