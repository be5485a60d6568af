"""What folded batch normalisation saves in inference, in both frameworks.

    python benchmarks/folding.py [--model resnet50_lma] [--batch_size 8] [--image_size 224] [--steps 10]
        [--device cpu] [--json folding.json]

Prints images/s of the folded network over those of the unfolded one. Both take turns, with the same random weights.
Needs only jax, flax, torch, numpy and absl.
"""

from measurements import folding, options, results


def main() -> None:
    parser = options.parser(__doc__, model="resnet50_lma", batch_size=8, image_size=224, steps=10, device="cpu")
    chosen = parser.parse_args()
    rows = folding.speedups(
        chosen.model,
        batch_size=chosen.batch_size,
        image_size=chosen.image_size,
        device=chosen.device,
        steps=chosen.steps,
    )
    for name, (low, median, high) in rows.items():
        print(f"{chosen.model} {name}: folded / unfolded {median:.3f} ({low:.3f} to {high:.3f})")
    results.write_json(chosen, **rows)


if __name__ == "__main__":
    main()
