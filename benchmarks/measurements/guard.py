"""Ratios that must not fall: a short version of the other measurements, and the rule that compares them."""

from collections.abc import Callable, Mapping

from convert.measure.timing import Quartiles
from measurements import input_pipeline, lma_layer, results, train_step
from measurements.lma_layer import FeatureMap

# A ratio passes if its upper quartile reaches SLACK of the baseline, in the best of ATTEMPTS.
SLACK = 0.75
ATTEMPTS = 3
STEPS = 8

Figures = dict[str, Quartiles]


def layer(feature_map: FeatureMap, *, with_backward: bool) -> Figures:
    """The layer's speed over that of its textbook form."""
    found = lma_layer.speedups(feature_map, with_backward=with_backward, steps=STEPS)
    kind = "forward and backward" if with_backward else "forward"
    title = f"LMA {feature_map.channels} x {feature_map.side} {kind}"
    return {f"{title}: {name}": quartiles for name, quartiles in found.items()}


def layers(*, with_backward: bool) -> Figures:
    """The same on a large and on a small map."""
    maps = FeatureMap(256, 56), FeatureMap(960, 7)
    return {name: found for m in maps for name, found in layer(m, with_backward=with_backward).items()}


def training() -> Figures:
    """The speed of a training step with LMA over that without."""
    setting = train_step.Setting(batch_size=4, image_size=64)
    found = train_step.compare(["resnet18_lma"], ["jax", "torch"], setting, steps=STEPS)
    results.exit_on(found.failed)
    return {
        f"training step: {ratio['of']} / {ratio['over']}": ratio["quartiles"]
        for ratio in found.ratios
        if ratio["shows"] == train_step.LMA_OVER_PLAIN
    }


def input_path() -> Figures:
    """Images per second of processor time: the loader over a plain JPEG decode."""
    return {"input path: loader / plain decode": input_pipeline.loader_over_decode(images=64, rounds=5)}


PARTS: dict[str, Callable[[], Figures]] = {
    # First: the others have the process keep freed memory, which the trainer does not.
    "input path": input_path,
    "layer, forward": lambda: layers(with_backward=False),
    "layer, forward and backward": lambda: layers(with_backward=True),
    "training step": training,
}


def slower(found: Mapping[str, Quartiles], baseline: Mapping[str, float]) -> list[str]:
    """The figures that fell below the baseline by more than noise; figures that are new to it do not count."""
    return [name for name, (_, _, upper) in found.items() if upper < SLACK * baseline.get(name, 0)]


def best_of_attempts(part: Callable[[], Figures], baseline: Mapping[str, float]) -> Figures:
    """The figures of a part. It is measured again while some are slower, since a disturbed run passes the next time."""
    best: Figures = {}
    for _ in range(ATTEMPTS):
        for name, quartiles in part().items():
            best[name] = max(best.get(name, quartiles), quartiles, key=lambda values: values.upper)
        if not slower(best, baseline):
            break
    return best
