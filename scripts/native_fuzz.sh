#!/bin/sh
# Builds native/fuzz with clang's libFuzzer, ASan and UBSan, and runs every target for SECONDS each
# (default 20). Inputs that were worth keeping stay in build/fuzz/corpus; a finding is written to
# build/fuzz and fails the script. Without clang nothing is done, and said so.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:$PWD/.venv/bin"
seconds=${1:-20}
if ! command -v clang++ >/dev/null; then
  echo 'no fuzzing: clang++ is absent'
  exit 0
fi
CXX=clang++ cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DMIUDO_SANITIZE=address,undefined -DMIUDO_FUZZ=ON -DMIUDO_PYTHON=OFF >/dev/null
cmake --build build/fuzz
for target in tensor linear; do
  mkdir -p "build/fuzz/corpus/$target"
  build/fuzz/fuzz_$target -max_total_time="$seconds" -max_len=4096 -len_control=0 -timeout=60 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/$target-" "build/fuzz/corpus/$target"
done
