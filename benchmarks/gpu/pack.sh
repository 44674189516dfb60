#!/usr/bin/env bash
# Collects in DIR what a GPU machine without network needs for run.sh: this checkout, without the demonstration's
# screenshots that run.sh does not show, and in DIR/wheels the packages that a machine with PyTorch, transformers and
# the common scientific packages lacks. Run it in this checkout's environment, where pip reaches an index.
# bash benchmarks/gpu/pack.sh DIR [--python 3.12] [--torch-cuda 130]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages="peft trl datasets dill multiprocess pydantic pydantic_core annotated-types typing-inspection typing_extensions
    bitsandbytes RapidFuzz codecarbon pycountry"
max_wheels=$((24 * 1000 * 1000)) max_all=$((64 * 1024 * 1024))
usage="expected DIR [--python 3.12] [--torch-cuda 130]"

python_version=3.12 cuda=130 dir=
while [ $# -gt 0 ]; do
    case $1 in
        --python) python_version=${2:?$usage} && shift 2 ;;
        --torch-cuda) cuda=${2:?$usage} && shift 2 ;;
        -*) echo "found $1; $usage" >&2 && exit 2 ;;
        *) dir=$1 && shift ;;
    esac
done
if [ -z "$dir" ] || [ -e "$dir" ]; then
    echo "DIR: found ${dir:-nothing}; expected the name of a folder that does not exist yet" >&2
    exit 2
fi

count_bytes() { find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'; }
format_mb() { awk -v n="$1" 'BEGIN { printf "%.1f MB", n / 1e6 }'; }

files=$(mktemp)
trap 'rm -f "$files"' EXIT
list='from benchmarks.gpu.smoke import list_screenshots; print(*list_screenshots(), sep="\n")'
PYTHONPATH=$PWD python -c "$list" >"$files"
git ls-files --cached --others --exclude-standard | grep -v '^demo/data/images/' >>"$files"
mkdir -p "$dir/wheels"
xargs -d '\n' cp --parents --target-directory="$dir" <"$files"
tree=$(count_bytes "$dir")

platforms=$(printf -- '--platform manylinux%s_x86_64 ' _2_28 _2_27 _2_24 _2_17 2014 1)
for package in $packages; do
    if ! pinned=$(grep -i "^$package==" constraints.txt); then
        echo "$package: found no version in constraints.txt" >&2
        exit 1
    fi
    # shellcheck disable=SC2086
    python -m pip download --quiet --no-deps --only-binary=:all: --implementation cp $platforms \
        --python-version "$python_version" --dest "$dir/wheels" "$pinned"
done
python benchmarks/gpu/strip_wheel.py "$dir"/wheels/bitsandbytes-*.whl 'libbitsandbytes_(cuda|rocm|xpu)' \
    --keep "libbitsandbytes_cuda$cuda.so"
python benchmarks/gpu/strip_wheel.py "$dir"/wheels/pycountry-*.whl '/locales/' # 8 MB of translations
git describe --always --dirty --abbrev=12 --exclude '*' >"$dir/wheels/COMMIT"

wheels=$(count_bytes "$dir/wheels") all=$(count_bytes "$dir")
find "$dir/wheels" -name '*.whl' -printf '%s %f\n' | sort -rn | awk '{ printf "%8.1f MB  %s\n", $1 / 1e6, $2 }'
echo "wheels $(format_mb "$wheels"), checkout $(format_mb "$tree"), together $(format_mb "$all") in $dir"
if [ "$wheels" -gt "$max_wheels" ] || [ "$all" -gt "$max_all" ]; then
    echo "found more than wheels may take ($(format_mb "$max_wheels")) or all together ($(format_mb "$max_all"))" >&2
    exit 1
fi
