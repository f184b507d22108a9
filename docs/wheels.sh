#!/usr/bin/env bash
# Fetches what a machine with PyTorch and no network needs to score and to run notebooks: docs/wheels.sh FOLDER
# Run it with the Python version of that machine: PYTHON=python3.12 docs/wheels.sh wheels
set -euo pipefail
folder="${1:?name a folder for the wheels}"
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
"$python" -m pip download --quiet --disable-pip-version-check -c constraints.txt --dest "$folder" papermill scipy
"$python" -m pip download --quiet --disable-pip-version-check -c constraints.txt --dest "$folder" --no-deps torch-fidelity
du -sh "$folder"
