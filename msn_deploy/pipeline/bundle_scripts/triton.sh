#!/bin/sh
# Puts the engines of this bundle into a model repository for Triton, outside of the bundle: sh triton/repository.sh DIR
# Then: tritonserver --model-repository=DIR
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
[ $# = 1 ] || { echo "usage: sh repository.sh DIR" >&2; exit 2; }
made=''
for config in "$here"/*/config.pbtxt; do
    folder=${config%/config.pbtxt}
    name=${folder##*/}
    engine=$here/../engines/$name.engine
    if [ ! -f "$engine" ]; then
        echo "$name has no engine here and is left out (./build.sh builds it)." >&2
        continue
    fi
    mkdir -p -- "$1/$name/1"
    cp -- "$folder"/* "$1/$name/"
    cp -- "$engine" "$1/$name/1/model.plan"
    echo "$1/$name"
    made=yes
done
[ -n "$made" ] || { echo "No engine is here; type ./build.sh first." >&2; exit 3; }
