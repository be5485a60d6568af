"""The figures of the paper: its Table 1 as printed, and the exact MACs of the published networks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of the paper's Table 1, as printed.

    Attributes:
        model: name of the network here.
        parameters: millions of parameters.
        macs: billions of multiply-accumulates, which the paper calls FLOPs.
        fps: images per second on an RTX A6000.
        top1, top5: accuracy on ImageNet's validation images (%).
    """

    model: str
    parameters: str
    macs: str
    fps: int
    top1: float
    top5: float


TABLE1 = tuple(
    Published(*row)
    for row in (
        ("mobilenetv2", "3.51", "0.32", 2180, 71.88, 90.29),
        ("mobilenetv2_se", "3.54", "0.32", 2058, 72.42, 90.67),
        ("mobilenetv2_cbam", "3.54", "0.32", 1910, 69.33, 89.33),
        ("mobilenetv2_eca", "3.51", "0.32", 2060, 72.55, 90.73),
        ("mobilenetv2_ta", "3.51", "0.32", 1844, 72.62, 90.77),
        ("mobilenetv2_lma", "3.51", "0.32", 2089, 72.98, 91.23),
        ("resnet18", "11.69", "1.82", 2007, 69.76, 89.08),
        ("resnet18_se", "11.78", "1.82", 1873, 70.59, 89.78),
        ("resnet18_cbam", "11.78", "1.82", 1859, 70.73, 89.91),
        ("resnet18_bam", "11.71", "1.83", 1866, 71.12, 89.99),
        ("resnet18_eca", "11.69", "1.82", 1904, 70.88, 89.90),
        ("resnet18_ta", "11.69", "1.83", 1773, 71.09, 89.99),
        ("resnet18_lma", "11.69", "1.82", 1951, 71.43, 90.18),
        ("resnet34", "21.80", "3.68", 1941, 73.31, 91.42),
        ("resnet34_se", "21.96", "3.68", 1749, 73.87, 91.65),
        ("resnet34_cbam", "21.96", "3.68", 1460, 74.01, 91.76),
        ("resnet34_eca", "21.80", "3.68", 1756, 74.19, 91.80),
        ("resnet34_lma", "21.80", "3.68", 1804, 74.62, 92.16),
        ("resnet50", "25.56", "4.12", 1162, 76.13, 92.86),
        ("resnet50_se", "28.09", "4.13", 935, 76.71, 93.38),
        ("resnet50_cbam", "28.09", "4.13", 590, 77.34, 93.69),
        ("resnet50_bam", "25.92", "4.21", 803, 75.98, 92.82),
        ("resnet50_gsop", "28.29", "6.41", 641, 77.68, 93.98),
        ("resnet50_gc", "28.10", "4.13", 575, 77.70, 93.66),
        ("resnet50_eca", "25.56", "4.13", 938, 77.40, 93.61),
        ("resnet50_sa", "25.56", "4.13", 773, 77.72, 93.80),
        ("resnet50_ta", "25.56", "4.17", 495, 77.48, 93.68),
        ("resnet50_lma", "25.56", "4.13", 961, 78.02, 93.98),
    )
)

# Counts of the published networks in the convention of Table 1, for 224 x 224 pixels and 1000 classes. The paper prints
# those of the rows above with two decimals, some of them cut off or rounded twice.
EXACT_MACS = {
    "mobilenetv2": 320_300_008,
    "mobilenetv2_lma": 324_904_552,
    "resnet18": 1_822_177_768,
    "resnet18_lma": 1_823_912_424,
    "resnet34": 3_675_629_032,
    "resnet34_lma": 3_678_861_800,
    "resnet50": 4_121_925_096,
    "resnet50_lma": 4_135_429_608,
    "resnet50_se": 4_129_976_392,
    "resnet50_cbam": 4_128_375_668,
    "resnet50_bam": 4_205_132_220,
    "resnet50_gsop": 6_405_416_680,
    "resnet50_gc": 4_129_991_203,
    "resnet50_eca": 4_127_532_264,
    "resnet50_sa": 4_130_204_136,
    "resnet50_ta": 4_169_186_996,
    "resnet101": 7_849_500_136,
    "resnet101_lma": 7_872_265_704,
    "resnet152": 11_580_687_848,
    "resnet152_lma": 11_614_320_104,
}
