#!/bin/sh
# Builds the native engine under the sanitizers, warnings as errors, and runs its tests:
#   scripts/native_sanitize.sh native    ASan and UBSan, then TSan, on the tests in native/test
#   scripts/native_sanitize.sh python    the same on the module, under the Python tests of the engine
# Without an argument: both. One sanitizer alone: SANITIZERS=address,undefined or thread.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:$PWD/.venv/bin"
python=$(command -v "${PYTHON:-.venv/bin/python}")
what=${1:-native python}
sanitizers=${SANITIZERS:-address,undefined thread}
export UBSAN_OPTIONS=print_stacktrace=1

# A thread that no sanitizer has seen made is none that it can judge: Python's own threads are
# theirs to see, PyTorch's and OpenBLAS's are not.
for sanitizer in $sanitizers; do
  build=build/sanitize-${sanitizer%%,*}
  case " $what " in *" python "*) module=ON ;; *) module=OFF ;; esac
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DMIUDO_SANITIZE="$sanitizer" -DMIUDO_TESTS=ON -DMIUDO_PYTHON=$module \
    -DPython_EXECUTABLE="$python" >/dev/null
  cmake --build "$build"
done
