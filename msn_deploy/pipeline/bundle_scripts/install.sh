#!/bin/sh
# Installs msn-deploy from the wheels of this bundle into .venv beside this script. Needs no network.
set -eu
. "$(dirname -- "$0")/common.sh"
"$here/verify"

found=''
for candidate in ${PYTHON:-python3 python3.12 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        found=$candidate
        break
    fi
done
if [ -z "$found" ]; then
    say "No Python 3.10 or later is here (JetPack before 6): msn-deploy is not installed." \
        "build.sh and bench.sh drive trtexec instead; they need no Python."
    exit 0
fi
ls "$here"/wheels/msn_deploy-*.whl >/dev/null 2>&1 || fail 2 "This bundle holds no wheels: it was made with --no-wheels." \
    "Install msn-deploy by pip where there is a network, or pack the bundle again."
# The system's packages stay visible, because JetPack's TensorRT is among them.
"$found" -m venv --system-site-packages "$here/.venv" ||
    fail 3 "$found makes no environment; type: sudo apt install python3-venv"
offline() {
    PIP_CONFIG_FILE=/dev/null "$python" -m pip --isolated --disable-pip-version-check install --quiet --no-index \
        --no-cache-dir --find-links "$here/wheels" "$@"
}
offline --ignore-installed "$(ls "$here"/wheels/msn_deploy-*.whl)[runtime]"
if "$python" -m pip list --local --format=freeze 2>/dev/null | grep -iE '^(tensorrt|torch|nvidia)'; then
    rm -rf "$here/.venv"
    fail 1 "The wheels brought what has to come from JetPack (above); the environment was removed."
fi
if ls "$here"/wheels/pycuda-*.tar.gz >/dev/null 2>&1; then
    PATH=$PATH:/usr/local/cuda/bin
    if command -v nvcc >/dev/null; then
        offline pycuda || say "pycuda was not built: engines do not run from Python, all else does." >&2
    else
        say "pycuda was not built, for nvcc is not here: sudo apt install nvidia-jetpack" >&2
    fi
fi
"$msn_deploy" --version
say "Next: ./build.sh"
