"""The LMA layer against the speed of memory: the passes over the map that it needs and those that it makes.

    python benchmarks/roofline.py [--batch_size 8] [--dtype float32] [--steps 10] [--device cpu] [--json roofline.json]

"passes" is XLA's count of the bytes that the compiled layer reads and writes, in maps; LMA needs three. The speed of
each variant is relative to three passes over the map at the speed of a plain copy, which takes turns with it.
"""

from measurements import options, results, roofline
from measurements.lma_layer import SHAPES, FeatureMap


def main() -> None:
    chosen = options.parser(__doc__, batch_size=8, dtype="float32", steps=10, device="cpu").parse_args()
    rows = []
    print(f"{'map':>12}{'MiB':>8}{'copy GB/s':>11}{'passes':>8}   speed relative to three passes of a copy")
    for channels, side in SHAPES:
        feature_map = FeatureMap(channels, side, chosen.batch_size, chosen.dtype, chosen.device)
        row = roofline.measured(feature_map, steps=chosen.steps)
        rows.append({"channels": channels, "side": side, **row})
        parts = "  ".join(f"{name} {speed:.2f}" for name, speed in row["speeds"].items())
        size = feature_map.size / 2**20
        print(f"{f'{channels} x {side}':>12}{size:8.1f}{row['copy']:11.1f}{row['passes']:8.2f}   {parts}", flush=True)
    results.write_json(chosen, rows=rows)


if __name__ == "__main__":
    main()
