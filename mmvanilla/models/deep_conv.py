"""The deep convolution: two convolutions in training that are one in deployment (section 3.1)."""

from typing import Dict, Mapping, Optional, Set, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .efficiency.convolve import convolve
from .efficiency.on_cpu import in_training_on_cpu, lean_deep_conv
from .folding.arithmetic import conv_like, fold_norm, merge_convs, put_conv, take
from .folding.foldable import FORMS, Foldable
from .norm import build_batch_norm, describe_batch_norm, normalize

# The layers of the deep form: the first convolution, its norm and the second convolution.
DEEP_LAYERS = ('conv1', 'norm1', 'conv2')


class DeepActivation(nn.Module):
    """``(1 - λ) ReLU(x) + λ x`` (equation 1), which is a leaky ReLU of slope λ.

    λ is saved in the state dict as a 0-dim float64 tensor, which keeps every digit. It is not a
    buffer: an averaged model (EMA) would average it, so it would never be exactly 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lambda_ = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x if self.lambda_ == 1 else F.leaky_relu(x, self.lambda_)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.lambda_, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.lambda_ = check_lambda(float(state))

    def extra_repr(self) -> str:
        return f'lambda_={self.lambda_}'


def check_lambda(value: float) -> float:
    """Raises UsageError unless λ is between 0 and 1."""
    if not 0 <= value <= 1:
        raise UsageError(f'λ must be from 0 to 1, got {value}.')
    return value


class DeepConv(Foldable):
    """A convolution that is trained as two, with an activation between them that fades to identity.

    ====== ============================== ==============================================
    form   contents                       use
    ====== ============================== ==============================================
    deep   conv · BN · [λ] · conv (· BN)  training, at any λ
    merged conv (· BN)                    training once λ = 1, the pair merged into one
    deploy conv                           inference, the norm folded into it too
    ====== ============================== ==============================================

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size of the first convolution. The second is 1x1, so that the pair
            merges exactly whatever the first is.
        stride: Stride of the first convolution.
        padding: Padding of the first convolution.
        dilation: Dilation of the first convolution.
        groups: Groups of both convolutions.
        padding_mode: Padding mode of the first convolution.
        mid_channels: Channels between the two; ``in_channels`` by default.
        norm_cfg: Config of the batch norms.
        final_norm: Whether a norm follows the second convolution; in a classifier none does.
        merged: Whether to build the merged form.
        deploy: Whether to build the deploy form.

    Shape: (N, C_in, H, W) to (N, C_out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Union[int, Tuple[int, int]] = 1,
        stride: Union[int, Tuple[int, int]] = 1,
        padding: Union[int, Tuple[int, int], str] = 0,
        dilation: Union[int, Tuple[int, int]] = 1,
        groups: int = 1,
        padding_mode: str = 'zeros',
        mid_channels: Optional[int] = None,
        norm_cfg: dict = dict(type='BN'),
        final_norm: bool = True,
        merged: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        geometry = dict(
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
        )
        mid_channels = mid_channels or in_channels
        self.groups = groups
        self.norm_keys, self.norm_eps = describe_batch_norm(norm_cfg)
        self.has_norm = final_norm
        if not final_norm:  # the merged form is one convolution already
            self.forms = FORMS[:2]
        if merged or deploy:
            self.conv = nn.Conv2d(in_channels, out_channels, **geometry)
            has_norm = final_norm and not deploy
            self.norm = build_batch_norm(norm_cfg, out_channels) if has_norm else nn.Identity()
            return
        self.conv1 = nn.Conv2d(in_channels, mid_channels, **geometry)
        self.norm1 = build_batch_norm(norm_cfg, mid_channels)
        self.act = DeepActivation()
        self.conv2 = nn.Conv2d(mid_channels, out_channels, 1, groups=groups)
        self.norm = build_batch_norm(norm_cfg, out_channels) if final_norm else nn.Identity()

    @property
    def is_deep(self) -> bool:
        """Whether the pair is not merged yet."""
        return hasattr(self, 'conv1')

    @property
    def lambda_(self) -> float:
        """λ of equation 1; 1 once merged. A new module has λ = 1 until a schedule sets it."""
        return self.act.lambda_ if self.is_deep else 1.0

    @lambda_.setter
    def lambda_(self, value: float) -> None:
        check_lambda(value)
        if self.is_deep:
            self.act.lambda_ = float(value)
        elif value != 1:
            raise UsageError(
                f'λ = {value} cannot be set on a deep convolution that is merged into one '
                'convolution: build the network in deep form (without merged=True).'
            )

    @in_training_on_cpu(lean_deep_conv)
    def forward(self, x: Tensor) -> Tensor:
        self.check_training()
        if self.is_deep:
            x = normalize(self.norm1, convolve(self.conv1, x))
            x = convolve(self.conv2, self.act(x))
        else:
            x = convolve(self.conv, x)
        return normalize(self.norm, x)

    def form_in(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> Optional[str]:
        if f'{prefix}conv1.weight' in state_dict:
            return 'deep'
        if f'{prefix}conv.weight' not in state_dict:
            return None
        has_norm = f'{prefix}norm.running_var' in state_dict
        return 'merged' if has_norm or not self.has_norm else 'deploy'

    def keys_in(self, form: str) -> Set[str]:
        layers = dict(
            conv1=form == 'deep',
            norm1=form == 'deep',
            conv2=form == 'deep',
            conv=form != 'deep',
            norm=form != 'deploy' and self.has_norm,
        )
        return {
            f'{layer}.{name}'
            for layer, is_there in layers.items()
            if is_there
            for name in (self.norm_keys if 'norm' in layer else ('weight', 'bias'))
        }

    def explain_mismatch(self, weights: Mapping[str, Tensor]) -> Optional[str]:
        """Explains weights without a pair, or with a λ that this form cannot have."""
        if 'weight' in weights:  # of the convolution that this layer replaced
            return (
                'it has one convolution there, but the network has a pair; train without these '
                'weights (init_cfg=None in a config), or use those of a network with deep training.'
            )
        try:
            lambda_ = check_lambda(float(weights.get('act._extra_state', 1)))
        except (TypeError, ValueError, RuntimeError):  # includes UsageError
            return 'its λ is not a number from 0 to 1.'
        if lambda_ == 1 or self.is_deep:
            return None
        return (
            f'its λ is {lambda_:g}, and a pair merges only at 1: train it to λ = 1 first, or '
            'rebuild the network without merged=True and deploy=True.'
        )

    def fold_weights(self, state_dict: Dict[str, Tensor], prefix: str, form: str) -> None:
        its = self.form_in(state_dict, prefix)
        if its is None or self.forms.index(its) >= self.forms.index(form):
            return
        if its == 'deep':
            conv, norm, second = (take(state_dict, f'{prefix}{n}.') for n in DEEP_LAYERS)
            take(state_dict, f'{prefix}act.')
            weight, bias = merge_convs(
                fold_norm(conv['weight'], conv['bias'], norm, self.norm_eps),
                (second['weight'], second['bias']),
                self.groups,
            )
        else:
            conv = take(state_dict, f'{prefix}conv.')
            weight, bias = conv['weight'], conv['bias']
        if form == 'deploy':
            norm = take(state_dict, f'{prefix}norm.')
            weight, bias = fold_norm(weight, bias, norm, self.norm_eps)
        own = self.conv1 if self.is_deep else self.conv
        put_conv(state_dict, prefix, weight, bias, own.weight.dtype)

    def build_form(self, form: str) -> None:
        if self.is_deep:
            trained = any(p.requires_grad for c in (self.conv1, self.conv2) for p in c.parameters())
            self.conv = conv_like(self.conv1, self.conv2.out_channels).requires_grad_(trained)
            del self.conv1, self.norm1, self.act, self.conv2
        else:
            self.conv = conv_like(self.conv, self.conv.out_channels)
        if form == 'deploy':
            self.norm = nn.Identity()
