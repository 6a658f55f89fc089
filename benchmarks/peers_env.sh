#!/bin/sh
# Install the tools that peers.py measures beside this package, in an environment of their own; never dependencies.
#   sh benchmarks/peers_env.sh [FOLDER]        FOLDER: outputs/benchmarks/peers-env
set -eu
cd "$(dirname "$0")/.."
folder=${1:-outputs/benchmarks/peers-env}
python=${PYTHON:-.venv/bin/python}
uv=$(command -v uv || command -v .venv/bin/uv || true)
if [ -n "$uv" ]; then
    "$uv" venv --quiet --allow-existing --python "$python" "$folder"
else
    "$python" -m venv "$folder"
fi
for package in antspyx==0.6.3 picsl-greedy==1.4.0.3 SimpleITK==2.5.7 itk-elastix==0.25.4; do
    if [ -n "$uv" ]; then
        # uv does not read pip's configuration.
        UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} \
            "$uv" pip install --quiet --python "$folder/bin/python" --constraint constraints.txt "$package"
    else
        "$folder/bin/python" -m pip install --quiet --constraint constraints.txt "$package"
    fi || echo "peers_env.sh: $package is not installable here; peers.py will skip it" >&2
done
echo "$folder"
