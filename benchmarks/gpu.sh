#!/usr/bin/env bash
# Measures every figure that needs a GPU, in ten minutes at most: bash benchmarks/gpu.sh <folder for the results>
# Needs only jax, flax, optax, torch, numpy and absl. A part that exceeds its time is cut off, and the next one starts.
set -uo pipefail
out=$(realpath -m "${1:?give a folder for the results}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
# The parts share compiled programs. A second run over the same folder gets further than one that was cut off.
export PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR="$out/cache/jax" TORCHINDUCTOR_CACHE_DIR="$out/cache/torch"
mkdir -p "$out"
failed=0

part() {  # part <name> <seconds> <arguments of python ...>
    echo "== $1"
    timeout -k 5 "$2" "$python" "${@:3}" --json "$out/$1.json" 2>&1 | tee "$out/$1.txt"
    local status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || { echo "== $1 ended with $status (124: cut off after $2 s)"; failed=1; }
}

bf16="--device gpu --dtype bfloat16"
part train_step 150 benchmarks/train_step.py $bf16 --batch_size 256 --steps 10 --modes jax,torch_compile
part remat 60 benchmarks/train_step.py $bf16 --batch_size 256 --steps 10 --modes jax,jax_remat
for backbone in resnet50 resnet34 resnet18 mobilenetv2; do
    part "fps_$backbone" 35 -m convert.fps $bf16 --batch_size 256 --steps 20 --framework jax --model "${backbone}_lma"
done
for backbone in resnet34 resnet18 mobilenetv2; do
    part "train_$backbone" 40 benchmarks/train_step.py $bf16 --batch_size 128 --steps 10 --modes jax --model "${backbone}_lma"
done
part lma_layer 75 benchmarks/lma_layer.py $bf16 --batch_size 128 --steps 3
part roofline 45 benchmarks/roofline.py $bf16 --batch_size 128 --steps 3
exit $failed
