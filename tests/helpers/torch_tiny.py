"""The PyTorch twin of tiny.Tiny with attention; apart from it, so that training alone does not wait for PyTorch."""

import torch

import lma_torch
from tests.helpers.tiny import CLASSES


class TorchTiny(torch.nn.Module):
    """Convolution, normalisation, attention and a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.attention = lma_torch.LMA(8)
        self.fc = torch.nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(torch.relu(self.attention(self.bn1(self.conv1(x)))).mean((2, 3)))
