#!/usr/bin/env bash
# Does LMA help? Plain, LMA, SE, ECA and CBAM by one recipe and in one order of the data, three seeds each, on CIFAR-10.
#
#     examples/compare_cifar10.sh <folder of train/<class>/*.jpg and val/<class>/*.jpg> [<folder for the runs>]
#
# 15 runs of 12 to 20 minutes of a CPU core; with JOBS=2, two at a time. Started again, it goes on where it was. A run that
# fails is named; what it reached is marked in the table.
set -euo pipefail

export images runs
[[ $# == [12] && -d $1/train && -d $1/val ]] ||
    { echo "error: usage: $0 <folder with train/ and val/> [<folder for the runs>]" >&2; exit 2; }
images=$(realpath "$1")
runs=${2:-runs/compare}
mkdir -p "$runs"

train() {
    local run=$runs/$1-$2 said=ended
    python -m lma_jax.train --config "cifar10:$1" --config.data_dir="$images" --config.seed="$2" --workdir "$run" \
        >> "$run.log" 2>&1 || said=failed
    echo "$1-$2 $said: $(tail -n 1 "$run.log")"
    [[ $said == ended ]]
}
export -f train

for seed in 0 1 2; do
    for model in resnet18 resnet18_lma resnet18_se resnet18_eca resnet18_cbam; do
        echo "$model $seed"
    done
done | xargs -n 2 -P "${JOBS:-1}" bash -c 'train "$0" "$1"' || failed=1

python -m convert.compare "$runs"/*-[0-2] --markdown "$runs/table.md" --csv "$runs/metrics.csv" --plot "$runs/comparison.png"
exit "${failed:-0}"
