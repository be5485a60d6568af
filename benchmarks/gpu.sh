#!/usr/bin/env bash
# Every figure that needs a GPU, in ten minutes at most: bash benchmarks/gpu.sh <folder for the results>
# It needs jax, flax, optax, torch and numpy alone. A part that runs over its time is cut off, and the next one starts.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results}
python=${PYTHON:-python3}
mkdir -p "$out"

part() {  # part <name> <seconds> <arguments of python ...>
    echo "== $1"
    timeout "$2" "$python" "${@:3}" --json "$out/$1.json" 2>&1 | tee "$out/$1.txt"
}

part train_step 210 benchmarks/train_step.py --device gpu --dtype bfloat16 --batch 256 --rounds 20 \
    --modes jax,jax_remat,torch_compile
for host in resnet50 resnet34 resnet18 mobilenetv2; do
    part "fps_$host" 40 -m convert.fps --device gpu --dtype bfloat16 --batch_size 256 --steps 20 --framework jax \
        --model "${host}_lma"
done
part train_tax 120 benchmarks/train_step.py --device gpu --dtype bfloat16 --batch 128 --rounds 20 --modes jax \
    --model resnet34_lma,resnet18_lma,mobilenetv2_lma
part lma_layer 60 benchmarks/lma_layer.py --device gpu --dtype bfloat16 --batch 128 --rounds 10
part roofline 50 benchmarks/roofline.py --device gpu --dtype bfloat16 --batch 128 --rounds 10
