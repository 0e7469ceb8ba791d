#!/bin/sh
# How often is each model right, as built here? Answers go into report/, beside those of bench.sh.
#   ./eval.sh DATA      a name that msn-deploy knows, or a folder of images (`msn-deploy eval --help`)
set -eu
. "$(dirname -- "$0")/common.sh"
[ $# = 1 ] || fail 2 "Type: ./eval.sh DATA"
[ -f "$installed" ] || fail 3 "msn-deploy is not here; type: ./install.sh" "trtexec measures no accuracy."
! have_engines || runs_engines || fail 3 "Python runs no engine here, for it lacks TensorRT or pycuda." \
    "Type: sudo apt install python3-libnvinfer && ./install.sh"
case $1 in
    /*) data=$1 ;;
    *) if [ -e "$1" ]; then data=$PWD/$1; else data=$1; fi ;;
esac
mkdir -p "$here/report"
cd "$here"
failed=''
code=0
for model in $(subjects); do
    name=${model##*/}
    say "$name"
    "$msn_deploy" eval "$model" --data "$data" --json "report/${name%.*}.eval.json" || { code=$? failed="$failed $name"; }
done
[ -z "$failed" ] || fail "$code" "No answers of these, for the reasons above:$failed."
say "Next: ./bench.sh"
