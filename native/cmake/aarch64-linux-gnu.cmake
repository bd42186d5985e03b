# Builds for 64-bit ARM Linux with Debian's cross compiler (package g++-aarch64-linux-gnu).
# Programs are static, so that qemu-aarch64 (package qemu-user) and any board run them as they are.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
