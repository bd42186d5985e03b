#!/bin/sh
# Builds the native tests and the replayer for 64-bit ARM Linux into build/aarch64, on a machine
# of any kind: Debian's packages g++-aarch64-linux-gnu, to run them here qemu-user.
#   qemu-aarch64 -cpu cortex-a76 build/aarch64/miudo_tests     as a Raspberry Pi 5 would
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:$PWD/.venv/bin"
cmake -S . -B build/aarch64 -G Ninja -DCMAKE_BUILD_TYPE=Release -DMIUDO_PYTHON=OFF \
  -DMIUDO_TESTS=ON -DMIUDO_REPLAY=ON \
  -DCMAKE_TOOLCHAIN_FILE=native/cmake/aarch64-linux-gnu.cmake >/dev/null
cmake --build build/aarch64
