"""The series informed activation function (paper section 3.2, equation 6)."""

from typing import Mapping, Optional

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .folding import conv_like, fuse_conv_bn
from .guarded_loading import GuardedModule
from .norm import build_batch_norm


class SeriesActivation(GuardedModule):
    """``sum_{i,j in -n..n} a_ijc ReLU(x_{h+i,w+j,c} + b_c)``: a ReLU and a depthwise convolution.

    In training form a batch norm follows the convolution; ``b_c`` is the bias of the norm before
    this module. In deploy form the norm is folded into the convolution.

    Args:
        num_channels: Channels C of input and output.
        act_num: The series number n; the depthwise kernel has 2n + 1 rows and columns.
        deploy: Whether to build the deploy form.
        norm_cfg: Config of the batch norm.

    Shape: (N, C, H, W) to (N, C, H, W).

    Raises:
        UsageError: if the series number is negative.
    """

    def __init__(
        self,
        num_channels: int,
        act_num: int = 3,
        deploy: bool = False,
        norm_cfg: dict = dict(type='BN'),
    ) -> None:
        super().__init__()
        if act_num < 0:
            raise UsageError(f'act_num={act_num} is no series number: give 0 or more.')
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(
            num_channels,
            num_channels,
            2 * act_num + 1,
            padding=act_num,
            groups=num_channels,
            bias=deploy,
        )
        self.norm = None if deploy else build_batch_norm(norm_cfg, num_channels)

    def explain_mismatch(self, state_dict: Mapping[str, Tensor], prefix: str) -> Optional[str]:
        """Names the series numbers if the checkpoint has another one."""
        weight = state_dict.get(f'{prefix}conv.weight', self.conv.weight)
        its, own = weight.shape[-1], self.conv.weight.shape[-1]
        if its == own:
            return None
        return (
            f'its series number is {its // 2} ({its}x{its} kernels), the network has '
            f'act_num={own // 2}; build it with act_num={its // 2}.'
        )

    def activate(self, x: Tensor) -> Tensor:
        """All but the norm."""
        x = self.relu(x)
        if (
            torch.jit.is_tracing()
            or x.device.type != 'cpu'
            or not x.requires_grad
            or not x.is_contiguous()
        ):
            return self.conv(x)
        # In the usual layout the gradients of torch's depthwise convolutions take up to six times
        # as long on a CPU.
        return self.conv(x.contiguous(memory_format=torch.channels_last)).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(x)
        return x if self.norm is None else self.norm(x)

    def switch_to_deploy(self) -> None:
        """Folds the norm into the convolution, in place; does nothing in deploy form."""
        if self.norm is not None:
            weight, bias = fuse_conv_bn(self.conv.weight, self.conv.bias, self.norm)
            self.conv = conv_like(self.conv, weight, bias)
            self.norm = None
