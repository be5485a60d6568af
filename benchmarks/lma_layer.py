"""The LMA layer of both frameworks against its textbook form in PyTorch, forward and with the backward pass.

    python benchmarks/lma_layer.py [--batch_size 8] [--dtype float32] [--steps 30] [--device cpu]
        [--json lma_layer.json]

Prints the speed of each variant over that of the textbook form, on the shapes of ResNet-50 and MobileNetV2 at
224 x 224: above 1 is faster. The variants take turns, in an order drawn anew each round, and ratios are taken within a
round. On a CPU the clock counts processor time. Needs only jax, flax, torch, numpy and absl.
"""

from typing import Any

import numpy as np

from measurements import lma_layer, options, results


def report(title: str, **settings: Any) -> list[dict[str, Any]]:
    """Measures and prints all shapes of one pass. `settings` are those of a FeatureMap, `with_backward` and `steps`."""
    passes = dict(with_backward=settings.pop("with_backward"), steps=settings.pop("steps"))
    rows, medians = [], []
    for channels, side in lma_layer.SHAPES:
        found = lma_layer.speedups(lma_layer.FeatureMap(channels, side, **settings), **passes)
        medians.append([median for _, median, _ in found.values()])
        rows.append({"pass": title, "channels": channels, "side": side, **found})
        cells = "".join(f"{f'{median:.2f} ({low:.2f} to {high:.2f})':>32}" for low, median, high in found.values())
        print(f"{title:14}{f'{channels} x {side}':>12}{cells}", flush=True)
    # The targets were set for float32 on a CPU.
    aimed = (settings["device"], settings["dtype"]) == ("cpu", "float32")
    for (name, target), mean in zip(lma_layer.TARGETS.items(), np.exp(np.log(medians).mean(0))):
        aim = f", target {target.backward if passes['with_backward'] else target.forward}" if aimed else ""
        print(f"{title:14}{name:>32}: geometric mean {mean:.2f}{aim}")
    return rows


def main() -> None:
    dtypes = (*options.DTYPES, "float16")
    parser = options.parser(__doc__, dtypes=dtypes, batch_size=8, dtype="float32", steps=30, device="cpu")
    chosen = parser.parse_args()
    names = "".join(f"{name:>32}" for name in lma_layer.TARGETS)
    print(f"{'':14}{'map':>12}{names}   speed over the textbook form's")
    settings = dict(batch_size=chosen.batch_size, dtype=chosen.dtype, device=chosen.device, steps=chosen.steps)
    rows = report("forward", with_backward=False, **settings) + report("with backward", with_backward=True, **settings)
    results.write_json(chosen, rows=rows)


if __name__ == "__main__":
    main()
