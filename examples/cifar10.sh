#!/usr/bin/env bash
# The whole road on photographs: image files -> training, killed and resumed -> explanations -> exports -> their top-1.
#
#     examples/cifar10.sh <folder of train/<class>/*.jpg and val/<class>/*.jpg> [<folder for the results>]
#
# The data are CIFAR-10 as JPEG files; any image folder will do, with the recipe that fits its sizes. It needs
# pip install -e ".[train,torch,onnx]", and takes a quarter of an hour on two CPU cores. Started again, it goes on.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
[[ $# == [12] && -d $1/train && -d $1/val ]] || fail "usage: $0 <folder with train/ and val/> [<folder for the results>]"
here=$(dirname "$(realpath "$0")")
images=$(realpath "$1")
results=${2:-runs/cifar10}
run=$results/resnet18_lma
mkdir -p "$results"

# What is there from an earlier start must be of the same images.
(cd "$images" && find -L train val -type f -printf '%p %s\n' | sort) > "$results/images.new"
cmp -s "$results/images.new" "$results/images.txt" || [[ ! -e $results/images.txt ]] ||
    fail "the results in $results are of other images: give another folder"
mv "$results/images.new" "$results/images.txt"

section() { printf '\n== %s (after %d min) ==\n' "$1" $((SECONDS / 60)); }

section "Image files become a few large files"
python -m lma_jax.data.prepare --folder "$images" --name cifar10_photographs --data_dir "$results/builds"

section "Train, be killed, and resume"
train=(python -m lma_jax.train --config cifar10 --workdir "$run" --config.data_dir="$results/builds"
       --config.dataset=cifar10_photographs --config.val_split=validation --config.save_every_steps=200)
if [[ ! -e $run/checkpoints ]]; then
    saved() { find "$run/checkpoints" -maxdepth 1 -name '[0-9]*' ! -name '*.*' 2> /dev/null; }
    "${train[@]}" &
    trap 'kill $! 2> /dev/null || true' EXIT
    until [[ -n $(saved) ]] || ! kill -0 $! 2> /dev/null; do sleep 1; done
    kill -KILL $! && echo "killed with checkpoints $(cd "$run/checkpoints" && echo *)"
    wait $! || true
    trap - EXIT
fi
"${train[@]}"

section "Evaluate and predict"
python -m lma_jax.evaluate --checkpoint "$run"
python -m lma_jax.predict --checkpoint "$run" --image "$images/val" --top 1 --json "$results/classes.json" > "$results/classes.txt"
tail -n 3 "$results/classes.txt"

section "Explain"
first_in() { find "$1" -type f ! -name '.*' | sort | sed -n 1p; }
mkdir -p "$results/examples"
for class in "$images"/val/*/; do
    cp "$(first_in "$class")" "$results/examples/$(basename "$class").jpg"
done
python -m lma_jax.predict --checkpoint "$run" --image "$results/examples" --top 3 --output "$results/predictions.png"
python -m lma_jax.gradcam --checkpoint "$run" --image "$results/examples" --output "$results/cam.png"
python -m lma_jax.gradcam --checkpoint "$run" --image "$(first_in "$results/examples")" --gates \
    --output "$results/gates.png"

section "Export and verify"
for suffix in safetensors pt2 onnx; do
    python -m convert.to_torch --checkpoint "$run" --output "$results/network.$suffix"
done
python -m convert.to_stablehlo --checkpoint "$run" --output "$results/network.stablehlo"
python -m convert.to_hub --checkpoint "$run" --output "$results/hub/resnet18_lma"
python -m convert.verify --checkpoint "$run" --weights "$results/network.safetensors" --image_folder "$results/examples"

section "The exported files on the validation images"
python "$here/exported_top1.py" --images "$images/val" --classes "$results/classes.json" "$results"/network.*
section "Done: pictures, exports and metrics are in $results"
