"""VanillaNet in ordinary PyTorch, as the paper describes it: the baseline for our own.

Layers and parameter names are laid out as in the authors' code, so that their weights load as they
are, in training and in deploy form.
"""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


def fade(x: Tensor, lambda_: float) -> Tensor:
    """The activation between two convolutions (equation 1)."""
    return x if lambda_ == 1 else F.leaky_relu(x, lambda_)


class PlainActivation(nn.Module):
    """The series activation (paper, equation 6): ReLU, depthwise convolution, norm."""

    def __init__(self, channels: int, act_num: int, deploy: bool) -> None:
        super().__init__()
        size = 2 * act_num + 1
        self.weight = nn.Parameter(torch.empty(channels, 1, size, size))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(channels)) if deploy else None
        self.bn = None if deploy else nn.BatchNorm2d(channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        x = F.conv2d(F.relu(x), self.weight, self.bias, padding=padding, groups=len(self.weight))
        return x if self.bn is None else self.bn(x)


class PlainBlock(nn.Module):
    """One layer of the network."""

    def __init__(
        self, channels: int, out_channels: int, act_num: int, pool: nn.Module, deploy: bool
    ) -> None:
        super().__init__()
        self.deploy = deploy
        if deploy:
            self.conv = nn.Conv2d(channels, out_channels, 1)
        else:
            self.conv1 = nn.Sequential(
                nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels, EPS)
            )
            self.conv2 = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1), nn.BatchNorm2d(out_channels, EPS)
            )
        self.pool = pool
        self.act = PlainActivation(out_channels, act_num, deploy)
        self.lambda_ = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            x = self.conv(x)
        else:
            x = self.conv2(fade(self.conv1(x), self.lambda_))
        return self.act(self.pool(x))


class PlainVanillaNet(nn.Module):
    """The classifier.

    Args:
        channels: Channels after the stem and after each block.
        strides: Strides of the blocks' max-pooling.
        adaptive_pool_sizes: Sizes that the blocks of '13-x1.5-ada' pool to; 0 pools by the stride.
        act_num: Series number n.
        num_classes: Number of classes.
        deploy: Whether to build the deploy form.

    Shape: images (N, 3, H, W) to logits (N, num_classes).
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        adaptive_pool_sizes: Optional[Sequence[int]] = None,
        act_num: int = 3,
        num_classes: int = 1000,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.deploy = deploy
        self.lambda_ = 1.0
        stem = nn.Conv2d(
            3,
            channels[0],
            4,
            stride=3 if adaptive_pool_sizes else 4,
            padding=1 if adaptive_pool_sizes else 0,
        )
        pooling = [nn.AdaptiveAvgPool2d(1), nn.Dropout(0.05)]
        act = PlainActivation(channels[0], act_num, deploy)
        if deploy:
            self.stem = nn.Sequential(stem, act)
            self.cls = nn.Sequential(*pooling, nn.Conv2d(channels[-1], num_classes, 1))
        else:
            self.stem1 = nn.Sequential(stem, nn.BatchNorm2d(channels[0], EPS))
            self.stem2 = nn.Sequential(
                nn.Conv2d(channels[0], channels[0], 1), nn.BatchNorm2d(channels[0], EPS), act
            )
            self.cls1 = nn.Sequential(
                *pooling,
                nn.Conv2d(channels[-1], num_classes, 1),
                nn.BatchNorm2d(num_classes, EPS),
            )
            self.cls2 = nn.Sequential(nn.Conv2d(num_classes, num_classes, 1))
        self.stages = nn.Sequential()
        for i, stride in enumerate(strides):
            size = adaptive_pool_sizes[i] if adaptive_pool_sizes else 0
            pool = nn.AdaptiveMaxPool2d(size) if size else nn.MaxPool2d(stride)
            self.stages.append(
                PlainBlock(
                    channels[i],
                    channels[i + 1],
                    act_num,
                    nn.Identity() if stride == 1 else pool,
                    deploy,
                )
            )

    def set_lambda(self, value: float) -> None:
        """Sets λ of equation 1 in the stem, the blocks and the classifier."""
        for module in (self, *self.stages):
            module.lambda_ = value

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.cls(self.stages(self.stem(x))).flatten(1)
        x = self.stem2(fade(self.stem1(x), self.lambda_))
        x = self.cls1(self.stages(x))
        return self.cls2(fade(x, self.lambda_)).flatten(1)
