"""Exact figures of the published networks: 1000 classes, 224 x 224 pixels."""

from typing import NamedTuple


class Figures(NamedTuple):
    """The figures of a network.

    Attributes:
        parameters: their number.
        macs: multiply-accumulates of an image in the convention of the paper's Table 1, where they are known.
        products: those of convolutions and linear layers alone, without biases, which are torchvision's published
            figures; LMA adds K * C * (H + W) a layer to them.
    """

    parameters: int
    macs: int | None = None
    products: int | None = None


BACKBONES_AND_LMA = {
    "mobilenetv2": Figures(3_504_872, 320_300_008, 300_774_272),
    "mobilenetv2_lma": Figures(3_505_008, 324_904_552, 301_577_984),
    "resnet18": Figures(11_689_512, 1_822_177_768, 1_814_073_344),
    "resnet18_lma": Figures(11_689_576, 1_823_912_424, 1_814_302_720),
    "resnet34": Figures(21_797_672, 3_675_629_032, 3_663_761_408),
    "resnet34_lma": Figures(21_797_804, 3_678_861_800, 3_664_234_496),
    "resnet50": Figures(25_557_032, 4_121_925_096, 4_089_184_256),
    "resnet50_lma": Figures(25_557_204, 4_135_429_608, 4_091_650_048),
    "resnet101": Figures(44_549_160, 7_849_500_136, 7_801_405_440),
    "resnet101_lma": Figures(44_549_502, 7_872_265_704, 7_806_308_352),
    "resnet152": Figures(60_192_808, 11_580_687_848, 11_513_626_624),
    "resnet152_lma": Figures(60_193_320, 11_614_320_104, 11_520_966_656),
}

OTHER_ATTENTIONS = {
    "mobilenetv2_se": Figures(3_534_885),
    "mobilenetv2_cbam": Figures(3_536_585),
    "mobilenetv2_eca": Figures(3_504_903),
    "mobilenetv2_ta": Figures(3_505_892),
    "mobilenetv2_ca": Figures(3_950_648),
    "resnet18_se": Figures(11_778_592),
    "resnet18_cbam": Figures(11_779_392),
    "resnet18_bam": Figures(11_712_503),
    "resnet18_eca": Figures(11_689_548),
    "resnet18_ta": Figures(11_691_912),
    "resnet34_se": Figures(21_958_868),
    "resnet34_cbam": Figures(21_960_468),
    "resnet34_eca": Figures(21_797_746),
    "resnet50_se": Figures(28_088_024, 4_129_976_392),
    "resnet50_cbam": Figures(28_089_624, 4_128_375_668),
    "resnet50_bam": Figures(25_915_099, 4_205_132_220),
    "resnet50_gsop": Figures(28_285_224, 6_405_416_680),
    "resnet50_gc": Figures(28_105_032, 4_129_991_203),
    "resnet50_eca": Figures(25_557_118, 4_127_532_264),
    "resnet50_sa": Figures(25_557_740, 4_130_204_136),
    "resnet50_ta": Figures(25_561_832, 4_169_186_996),
    "resnet50_ca": Figures(27_474_864),
    "resnet50_sge": Figures(25_559_080),
    "resnet50_mca": Figures(25_557_310),
    "resnet50_simam": Figures(25_557_032),
}

PUBLISHED = {**BACKBONES_AND_LMA, **OTHER_ATTENTIONS}
