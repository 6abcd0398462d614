"""The series informed activation function (paper section 3.2, equation 6)."""

from typing import Dict, Mapping, Optional, Set

from torch import Tensor, nn

from ..arguments import AT_LEAST_0, AT_LEAST_1, checked
from .efficiency.convolve import convolve
from .folding.arithmetic import conv_like, fold_norm, put_conv, take
from .folding.foldable import Foldable
from .norm import build_batch_norm, describe_batch_norm, normalize


class SeriesActivation(Foldable):
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
        UsageError: for arguments of other kinds, or values that are out of range.
    """

    forms = ('merged', 'deploy')  # even in deep networks it has a single form for training

    @checked(num_channels=AT_LEAST_1, act_num=AT_LEAST_0)
    def __init__(
        self,
        num_channels: int,
        act_num: int = 3,
        deploy: bool = False,
        norm_cfg: dict = dict(type='BN'),
    ) -> None:
        super().__init__()
        self.norm_keys, self.norm_eps = describe_batch_norm(norm_cfg)
        self.relu = nn.ReLU()
        geometry = dict(padding=act_num, groups=num_channels, bias=deploy)
        self.conv = nn.Conv2d(num_channels, num_channels, 2 * act_num + 1, **geometry)
        self.norm = nn.Identity() if deploy else build_batch_norm(norm_cfg, num_channels)

    def form_in(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> Optional[str]:
        if f'{prefix}conv.weight' not in state_dict:
            return None
        return 'deploy' if f'{prefix}conv.bias' in state_dict else 'merged'

    def keys_in(self, form: str) -> Set[str]:
        norm = {'conv.bias'} if form == 'deploy' else {f'norm.{name}' for name in self.norm_keys}
        return {'conv.weight'} | norm

    def explain_mismatch(self, weights: Mapping[str, Tensor]) -> Optional[str]:
        """Explains weights with another series number."""
        weight = weights.get('conv.weight', self.conv.weight)
        its, own = weight.shape[-1], self.conv.weight.shape[-1]
        if its == own:
            return None
        return (
            f'its series number is {its // 2} ({its}x{its} kernels), but the network has '
            f'act_num={own // 2}; build it with act_num={its // 2}.'
        )

    def fold_weights(self, state_dict: Dict[str, Tensor], prefix: str, form: str) -> None:
        if form != 'deploy' or self.form_in(state_dict, prefix) != 'merged':
            return
        norm = take(state_dict, f'{prefix}norm.')
        weight = state_dict[f'{prefix}conv.weight']
        weight, bias = fold_norm(weight, None, norm, self.norm_eps)
        put_conv(state_dict, prefix, weight, bias, self.conv.weight.dtype)

    def build_form(self, form: str) -> None:
        self.conv = conv_like(self.conv, self.conv.out_channels)
        self.norm = nn.Identity()

    def activate(self, x: Tensor) -> Tensor:
        """The series of equation 6, without the norm."""
        return convolve(self.conv, self.relu(x))

    def forward(self, x: Tensor) -> Tensor:
        self.check_training()
        return normalize(self.norm, self.activate(x))
