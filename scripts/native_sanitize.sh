#!/bin/sh
# Builds the whole native engine with ASan and UBSan, warnings as errors, and runs its tests.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:$PWD/.venv/bin"
cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMIUDO_SANITIZE=ON \
  -DMIUDO_TESTS=ON -DMIUDO_PYTHON=OFF >/dev/null
cmake --build build/sanitize
for isa in portable ""; do
  UBSAN_OPTIONS=print_stacktrace=1 MIUDO_ISA=$isa build/sanitize/miudo_tests
done
