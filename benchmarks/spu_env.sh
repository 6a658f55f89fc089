#!/bin/sh
# Install SecretFlow SPU, which spu_worker.py measures beside this package, in an environment of its own; never a
# dependency. It wants Python 3.10 or 3.11 and numpy below 2.
#   sh benchmarks/spu_env.sh [FOLDER]        FOLDER: outputs/benchmarks/spu-env
set -eu
cd "$(dirname "$0")/.."
folder=${1:-outputs/benchmarks/spu-env}
python=${PYTHON:-.venv/bin/python}
uv=$(command -v uv || command -v .venv/bin/uv || true)
if [ -n "$uv" ]; then
    "$uv" venv --quiet --allow-existing --python "$python" "$folder"
else
    "$python" -m venv "$folder"
fi
if [ -n "$uv" ]; then
    # uv does not read pip's configuration.
    UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} "$uv" pip install --quiet --python "$folder/bin/python" spu==0.9.5
else
    "$folder/bin/python" -m pip install --quiet spu==0.9.5
fi || {
    echo "spu_env.sh: spu==0.9.5 is not installable here" >&2
    exit 1
}
echo "$folder"
