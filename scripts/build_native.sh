#!/bin/sh
# Builds miudo._native into src/miudo, for work on a checkout. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
python=$(command -v "$python")
PATH="$(dirname "$python"):$PATH"
cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DMIUDO_IN_SOURCE=ON \
  -DPython_EXECUTABLE="$python" >/dev/null
cmake --build build/dev
