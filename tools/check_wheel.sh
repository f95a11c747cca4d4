#!/bin/sh
# Checks the package as a wheel installs it: types by mypy, and which room imports which.
# Neither tool sees folders that package-dir maps into the package of an editable install.
# Usage: tools/check_wheel.sh BIN
set -eu
bin=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --target "$site" "$root"
rm -rf "$root/build"
cd "$site"
PYTHONPATH=$site "$bin/lint-imports" --config "$root/pyproject.toml" --no-cache
MYPYPATH=$site "$bin/mypy" --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p rl_as_inference
