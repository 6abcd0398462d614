#!/usr/bin/env bash
# Fills a folder with wheels for a machine with a GPU and no network, which gpu_measurements.py installs
# there: requirements/gpu.txt, with MMCV's ops built for its CUDA. PYTHON has that machine's Python and
# torch, nvcc its CUDA; TORCH_CUDA_ARCH_LIST is the GPU's architecture, by default that of an H100 or H200.
set -euo pipefail
[[ $# == 1 ]] || {
    echo "error: usage: PYTHON=... tools/gpu_wheels.sh FOLDER" >&2
    exit 1
}
FOLDER=$(realpath -m "$1")
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
cuda=$("$PYTHON" -c 'import torch; print(torch.version.cuda or "")') || {
    echo "error: $PYTHON has no torch: name one with the machine's torch as PYTHON=..." >&2
    exit 1
}
[[ -n $cuda ]] && nvcc --version 2>/dev/null | grep -q "release ${cuda%%.*}\." || {
    echo "error: torch of $PYTHON is built for CUDA '${cuda}', and nvcc is not of that: install both for the machine's CUDA." >&2
    exit 1
}
# -g0 -O1: the wheel is small, and the convolutions are torch's own.
export MMCV_WITH_OPS=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} CFLAGS='-g0 -O1'
"$PYTHON" -m pip wheel --no-build-isolation --no-deps -c requirements/newest/constraints.txt \
    -r requirements/gpu.txt -w "$FOLDER"
