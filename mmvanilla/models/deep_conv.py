"""The deep convolution: two convolutions in training that are one in deployment (section 3.1)."""

from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .folding import WeightBias, conv_like, fuse_conv_bn, merge_convs
from .guarded_loading import GuardedModule
from .matmul_conv import MatmulConv2d
from .norm import build_batch_norm
from .recompute import recompute_on_cpu


class DeepActivation(nn.Module):
    """``(1 - λ) ReLU(x) + λ x`` (equation 1), which is a leaky ReLU of slope λ.

    λ travels with the state dict as a 0-dim float64 tensor, exact to the last digit. It is not a
    buffer: an averaged model (EMA) would average it, and it would then never be exactly 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lambda_ = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x if self.lambda_ == 1 else F.leaky_relu(x, self.lambda_)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.lambda_, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.lambda_ = float(state)

    def extra_repr(self) -> str:
        return f'lambda_={self.lambda_}'


class DeepConv(GuardedModule):
    """A convolution that is trained as two, with an activation between them that fades to identity.

    ====== ============================== ==============================================
    form   contents                       use
    ====== ============================== ==============================================
    deep   conv · BN · [λ] · conv (· BN)  training, at any λ
    merged conv (· BN)                    training once λ = 1, the pair folded into one
    deploy conv                           inference, everything folded
    ====== ============================== ==============================================

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size of the first convolution; the second is 1x1, which makes the pair
            merge exactly, whatever the first.
        stride: Stride of the first convolution.
        padding: Padding of the first convolution.
        dilation: Dilation of the first convolution.
        groups: Groups of both convolutions.
        padding_mode: Padding mode of the first convolution.
        mid_channels: Channels between the two; ``in_channels`` by default.
        norm_cfg: Config of the batch norms.
        final_norm: Whether a norm follows the second convolution (not in a classifier).
        merged: Whether to build the merged form. It loads weights in deep form too: they are merged
            on the way, if their λ is 1.
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
        # What builds this layer in deep form.
        self.arguments = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            **geometry,
            mid_channels=mid_channels,
            norm_cfg=norm_cfg,
            final_norm=final_norm,
        )
        self.deploy = deploy
        if merged or deploy:
            self.conv = MatmulConv2d(in_channels, out_channels, **geometry)
            has_norm = final_norm and not deploy
            self.norm = build_batch_norm(norm_cfg, out_channels) if has_norm else None
            return
        self.conv1 = MatmulConv2d(in_channels, mid_channels, **geometry)
        self.norm1 = build_batch_norm(norm_cfg, mid_channels)
        self.act = DeepActivation()
        self.conv2 = MatmulConv2d(mid_channels, out_channels, 1, groups=groups)
        self.norm = build_batch_norm(norm_cfg, out_channels) if final_norm else None

    @property
    def is_deep(self) -> bool:
        """Whether the two convolutions are still two."""
        return hasattr(self, 'conv1')

    def explain_mismatch(self, state_dict: Mapping[str, Tensor], prefix: str) -> Optional[str]:
        """Names the forms if the checkpoint is in another one, or without deep training."""
        if f'{prefix}weight' in state_dict:  # of a network that was given deep training later
            return (
                'it has a plain convolution there, and the network two; train without these '
                'weights (init_cfg=None in a config), or take those of a network with deep '
                'training.'
            )
        its, own = form_in(state_dict, prefix), form_in(self.state_dict())
        if its in (None, own):
            return None
        lambda_ = float(state_dict.get(f'{prefix}act._extra_state', 1))
        mend = {
            'deep': 'build the network without deploy=True, and fuse it after loading'
            if lambda_ == 1
            else f'its λ is {lambda_:g}, and the pair merges only at 1: train it to λ = 1 first, '
            'or build the network without merged=True',
            'merged': 'build the network with merged=True (the backbone, and the head of a '
            'classifier)',
            'deploy': 'build the network with deploy=True (the backbone, and the head of a '
            'classifier), or load the training checkpoint that it was made of',
        }[its]
        its, own = (form.replace('deep', 'training') for form in (its, own))
        return f'it is in {its} form, and the network in {own} form; {mend}.'

    def merge_weights(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Merges this layer's weights of the deep form in a state dict, if it is in merged form.

        Weights that are in another form or of λ < 1 are left as they are. Of other channels they
        are merged too; loading then says what does not fit.

        Args:
            state_dict: The weights, changed in place.
            prefix: What the keys of this layer begin with.
        """
        convs = [state_dict.get(f'{prefix}{conv}.weight') for conv in ('conv1', 'conv2')]
        if self.is_deep or self.deploy or any(conv is None for conv in convs):
            return
        (mid_channels, in_channels, *_), (out_channels, *_) = (conv.shape for conv in convs)
        channels = dict(
            in_channels=in_channels * self.arguments['groups'],
            mid_channels=mid_channels,
            out_channels=out_channels,
        )
        with torch.device('meta'):
            deep = DeepConv(**self.arguments | channels)
        expected = deep.state_dict()
        given = {key: state_dict[prefix + key] for key in expected if prefix + key in state_dict}
        shapes = [
            {key: value.shape for key, value in weights.items() if 'extra_state' not in key}
            for weights in (given, expected)
        ]
        if shapes[0] != shapes[1]:
            return
        deep.load_state_dict(given, strict=False, assign=True)
        if deep.lambda_ != 1:
            return
        deep.merge()
        for key in given:
            del state_dict[prefix + key]
        state_dict.update({prefix + key: value for key, value in deep.state_dict().items()})

    def _load_from_state_dict(self, state_dict: Dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.merge_weights(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def lambda_(self) -> float:
        """λ of equation 1; 1 once merged. A new module has λ = 1 until a schedule sets it."""
        return self.act.lambda_ if self.is_deep else 1.0

    @lambda_.setter
    def lambda_(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise UsageError(f'λ = {value} is out of range: it goes from 0 to 1.')
        if self.is_deep:
            self.act.lambda_ = float(value)
        elif value != 1:
            raise UsageError(
                f'λ = {value} cannot be set on a merged deep convolution: its two convolutions are '
                'one; build the network in its deep form (without merged=True).'
            )

    def convolve(self, x: Tensor) -> Tensor:
        """All but the last norm."""
        if not self.is_deep:
            return self.conv(x)
        x = self.conv1(x)  # (N, C_mid, H', W')
        return recompute_on_cpu(  # (N, C_out, H', W')
            lambda x: self.conv2(self.act(self.norm1(x))), x, self
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x)
        return x if self.norm is None else self.norm(x)

    def merge(self) -> None:
        """Deep to merged form, in place; does nothing in the other forms.

        Raises:
            UsageError: if λ is not 1.
        """
        self.check_mergeable()
        if self.is_deep:
            self._set_conv(*self._merged())

    def switch_to_deploy(self) -> None:
        """Any form to deploy form, in place; does nothing in deploy form.

        Raises:
            UsageError: if λ is not 1.
        """
        self.check_mergeable()
        if self.norm is not None:
            self._set_conv(*fuse_conv_bn(*self._merged(), self.norm))
            self.norm = None
        elif self.is_deep:
            self._set_conv(*self._merged())
        self.deploy = True

    def check_mergeable(self) -> None:
        """Raises UsageError if λ is not 1."""
        if self.lambda_ != 1:
            raise UsageError(
                f'λ = {self.lambda_:g}: the two convolutions of a deep convolution merge only at '
                'λ = 1; train until the schedule reaches it, or call '
                'set_deep_training_lambda(model, 1).'
            )

    def _merged(self) -> WeightBias:
        """Weight and bias of the one convolution, the last norm apart, in float64 if it was two."""
        if not self.is_deep:
            return self.conv.weight, self.conv.bias
        first = fuse_conv_bn(self.conv1.weight, self.conv1.bias, self.norm1)
        return merge_convs(first, (self.conv2.weight, self.conv2.bias), self.conv2.groups)

    def _set_conv(self, weight: Tensor, bias: Tensor) -> None:
        self.conv = conv_like(self.conv1 if self.is_deep else self.conv, weight, bias)
        if self.is_deep:
            del self.conv1, self.norm1, self.act, self.conv2


def form_in(state_dict: Mapping[str, Tensor], prefix: str = '') -> Optional[str]:
    """The form of the deep convolution whose keys begin with ``prefix``, None if there is none.

    Without a last norm the merged form is the deploy form.
    """
    for form, key in (('deep', 'conv1'), ('merged', 'norm'), ('deploy', 'conv')):
        if f'{prefix}{key}.weight' in state_dict:
            return form
    return None
