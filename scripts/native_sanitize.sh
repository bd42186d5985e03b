#!/bin/sh
# Builds the native engine under the sanitizers, warnings as errors, and runs its tests.
#   scripts/native_sanitize.sh         the native tests, on every path, under ASan and UBSan, then TSan
#   scripts/native_sanitize.sh python  those, and the Python tests of the engine on modules so built
# One sanitizer alone: SANITIZERS=address,undefined or SANITIZERS=thread.
set -eu
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-$PWD/.venv/bin/python}")
PATH="$(dirname "$python"):$PATH"
if [ "${1:-}" = python ]; then module=ON; else module=OFF; fi
export UBSAN_OPTIONS=print_stacktrace=1

build_all() { # folder, what -fsanitize= is given
  cmake -S . -B "$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMIUDO_SANITIZE="$2" \
    -DMIUDO_TESTS=ON -DMIUDO_PYTHON=$module -DPython_EXECUTABLE="$python" >/dev/null
  cmake --build "$1"
}

test_natively() { # folder
  for isa in portable avx2 ""; do
    if [ "$isa" = avx2 ] && ! grep -qw avx2 /proc/cpuinfo; then continue; fi
    MIUDO_ISA=$isa "$1/miudo_tests"
  done
}

# The package beside its module in a folder of its own; then pytest with the rest of the arguments.
test_in_python() { # folder, the sanitizer's library
  rm -rf "$1/site"
  mkdir -p "$1/site"
  cp -r src/miudo "$1/site/miudo"
  rm -f "$1"/site/miudo/_native*.so
  cp "$1"/_native*.so "$1/site/miudo"
  preload="$(g++ -print-file-name="$2") $(g++ -print-file-name=libstdc++.so)"
  shift 2
  LD_PRELOAD="$preload" "$python" -m pytest -q -p no:cacheprovider --timeout=1800 \
    -m 'not slow and not parity' "$@"
}

for sanitizer in ${SANITIZERS:-address,undefined thread}; do
  build=build/sanitize-${sanitizer%%,*}
  build_all "$build" "$sanitizer"
  test_natively "$build"
  [ $module = ON ] || continue
  export PYTHONPATH="$build/site" PYTHONMALLOC=malloc OMP_NUM_THREADS=1
  if [ "$sanitizer" = thread ]; then
    # What no sanitizer compiled, it cannot judge: the tests that use the engine's own threads.
    TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" test_in_python "$build" \
      libtsan.so tests/engine/test_native_faults.py tests/engine/test_native_bits.py \
      -k 'not fork and not come_and_go'
  else
    # Python and its libraries never free all. Freed memory that is kept back is no leak, but counts where
    # memory is measured; and to ask for more than there is ends a process here.
    ASAN_OPTIONS=detect_leaks=0 test_in_python "$build" libasan.so tests/engine \
      --deselect tests/engine/test_native_errors.py::test_memory_stays_flat \
      --deselect tests/engine/test_native_faults.py::test_engines_come_and_go \
      --deselect tests/engine/test_native_loading.py::test_a_model_is_in_memory_once \
      --deselect 'tests/engine/test_probe.py::test_what_is_no_probe_is_refused[arguments4-ResourceError]'
  fi
done
