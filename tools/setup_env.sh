#!/usr/bin/env bash
# Makes .venv with the pinned, tested stack; with a name, .venv-NAME with that of requirements/NAME:
# its Pythons (python.txt), packages (runtime.txt; no_deps.txt without those that they name) and
# versions (constraints.txt).
# After an interruption, run it again: it goes on where it stopped. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

NAME=${1:-openmmlab}
DATA=requirements/$NAME
[[ $NAME =~ ^[A-Za-z0-9._-]+$ && -f $DATA/python.txt && -f $DATA/runtime.txt ]] &&
    MMCV=$(grep -E '^(onedl-)?mmcv==' "$DATA/constraints.txt" 2>/dev/null) || {
    echo "error: no environment is called $NAME: it needs python.txt, runtime.txt and constraints.txt with mmcv in requirements/$NAME." >&2
    exit 1
}
VENV=.venv
[[ $NAME == openmmlab ]] || VENV=.venv-$NAME
PYTHONS=$(cat $DATA/python.txt) # minor versions, the preferred one first
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mmvanilla/wheels
LOG=$VENV/setup.log
STAMP=$VENV/ready
WANTED=$(cat requirements/{build,tests}.txt $DATA/*.txt setup.py tools/setup_env.sh | sha256sum)

fail() {
    echo "error: $*" >&2
    exit 1
}

# run WHAT COMMAND...: prints one line, logs the rest, and reports a failure in one sentence.
run() {
    local what=$1
    shift
    echo "$what ..."
    if ! "$@" >>"$LOG" 2>&1; then
        grep -qi 'no space left' "$LOG" && fail "the disk is full: free some space and run this again."
        fail "$what failed: see $LOG, then run this again."
    fi
}

is_wanted() { # is_wanted INTERPRETER
    "$1" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] not in '$PYTHONS'.split())" 2>/dev/null
}

find_python() {
    local candidate version
    for version in $PYTHONS; do
        for candidate in ${PYTHON:-python$version python3 ${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python}; do
            is_wanted "$candidate" && echo "$candidate" && return
        done
    done
    fail "no Python ${PYTHONS// / or } with venv found: install it, or name it with PYTHON=..."
}

need_space() { # need_space FOLDER GIGABYTES WHAT
    mkdir -p "$1" || fail "cannot create $1: check its permissions and the free space."
    local free=$(($(df -Pk "$1" | awk 'NR == 2 {print $4}') / 1048576))
    ((free >= $2)) || fail "the disk of $1 has $free GB free, $3 needs $2: free some space."
}

build_mmcv() { # leaves the wheel's path in $wheel
    local platform cuda=cpu nvcc_major torch_major
    if $VENV/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        nvcc_major=$({ nvcc --version 2>/dev/null || true; } | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
        torch_major=$($VENV/bin/python -c 'import torch; print(torch.version.cuda.split(".")[0])')
        [[ -n $nvcc_major && $nvcc_major == "$torch_major" ]] && cuda=cuda$torch_major
        [[ $cuda == cpu ]] && echo "no CUDA $torch_major compiler (nvcc): mmcv's ops are built only for the CPU."
    fi
    platform=$($VENV/bin/python -c 'import sys, sysconfig, torch; print(
        f"torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}")')
    local folder=$CACHE/$platform-$cuda
    local name=${MMCV/onedl-/onedl_}
    name=${name/==/-}
    wheel=$(compgen -G "$folder/$name-*.whl" || true)
    [[ -n $wheel ]] && return
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        fail "no C++ compiler found, mmcv's ops need one: install g++ (apt-get install g++)."
    $VENV/bin/python -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        fail "no Python headers found, mmcv's ops need them: install them (apt-get install python3-dev)."
    need_space "${TMPDIR:-/tmp}" 2 "building mmcv"
    mkdir -p "$folder"
    local building
    building=$(mktemp -d "$folder/building.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$building'" EXIT
    # -g0 -O1: minutes instead of half an hour, a wheel of 1 MB; the convolutions are torch's own.
    [[ $cuda == cpu ]] && export CUDA_VISIBLE_DEVICES=
    run "building $MMCV with its ops, once (4 to 10 minutes on 2 cores)" \
        env MMCV_WITH_OPS=1 CFLAGS="-g0 -O1" $VENV/bin/python -m pip wheel --no-build-isolation --no-deps \
        --no-cache-dir -w "$building" "$MMCV"
    mv "$building"/*.whl "$folder"
    wheel=$(compgen -G "$folder/$name-*.whl")
}

[[ -f $STAMP && $(cat $STAMP) == "$WANTED" ]] && $VENV/bin/python -c '' 2>/dev/null && exit 0

if ! $VENV/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    need_space . 10 "the environment"
    "$python" -m venv $VENV || fail "$python cannot make a virtual environment: install its venv package."
fi
is_wanted $VENV/bin/python || fail "$VENV has a Python other than ${PYTHONS// / or }: remove it and run this again."
: >"$LOG"
rm -f $VENV/tests.xml # of other versions
pip() { $VENV/bin/python -m pip --disable-pip-version-check "$@"; }
# The fork is published as source, and built here with the build tools that are installed first.
install() { pip install -c $DATA/constraints.txt --no-build-isolation "$@"; }
run "installing torch and build tools" install -r requirements/build.txt
build_mmcv
run "installing mmcv" pip install --no-deps "$wheel"
run "installing OpenMMLab packages and test tools" install -r $DATA/runtime.txt -r requirements/tests.txt
[[ ! -f $DATA/no_deps.txt ]] || run "installing mmdeploy" install --no-deps -r $DATA/no_deps.txt
# opencv-python needs libGL, which servers lack; nothing here opens a window. The other would send
# usage data; OpenVINO works without it.
run "removing opencv-python and openvino-telemetry" pip uninstall -y opencv-python openvino-telemetry
run "installing opencv-python-headless" install --no-deps --force-reinstall opencv-python-headless
run "installing mmvanilla" pip install --no-build-isolation --no-deps -e .
echo "$WANTED" >$STAMP
echo "The environment is ready in $VENV."
