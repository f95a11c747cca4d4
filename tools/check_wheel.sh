#!/bin/sh
# Checks the package as it is installed from its source archive: that all of it is there and runs, in an empty folder and
# in a clone's; types by mypy, and which room imports which. Neither tool sees folders that package-dir maps into the
# package of an editable install.
# Usage: tools/check_wheel.sh BIN
set -eu
bin=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

# The archive is made of a copy: what an earlier build has listed beside the sources would be put into it, too.
mkdir "$made/copy" "$made/empty"
(cd "$root" && cp -R pyproject.toml README.md LICENSE rl_as_inference models guides "$made/copy")
cd "$made/copy"
"$bin/python" -c "from setuptools.build_meta import build_sdist; build_sdist('..')" >"$made/log" 2>&1 ||
    { cat "$made/log" && exit 1; }

# An environment that has all of BIN's but the clone: what .pth files say there is not read when one leads there.
cd "$made/empty"
"$bin/python" -m venv --without-pip "$made/venv"
site=$("$made/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
"$bin/python" -c "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\n')" >"$site/all.pth"
"$bin/python" -m pip --python "$made/venv/bin/python" install --quiet --disable-pip-version-check --no-index --no-deps \
    --no-build-isolation --ignore-installed "$made"/*.tar.gz
diff -r -x __pycache__ -x models -x guides "$root/rl_as_inference" "$site/rl_as_inference"
for room in models guides; do
    diff -r -x __pycache__ "$root/$room" "$site/rl_as_inference/$room"
done
for folder in "$made/empty" "$root"; do  # where Python finds the clone first
    cd "$folder"
    "$made/venv/bin/rlai" --version
    "$made/venv/bin/python" -c "import rl_as_inference as rlai; rlai.models.corridor, rlai.guides.TabularPolicy
print(rlai.__file__)"
done

cd "$made/empty"
PYTHONPATH=$site "$bin/lint-imports" --config "$root/pyproject.toml" --no-cache
MYPYPATH=$site "$bin/mypy" --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p rl_as_inference
