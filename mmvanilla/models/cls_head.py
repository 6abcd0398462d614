"""The classifier of VanillaNet, as a head of mmpretrain."""

from typing import Any, List, Tuple, Union

from torch import Tensor, nn

from ..arguments import AT_LEAST_1, FROM_0_TO_1, checked
from ..errors import UsageError
from ..registry import MODELS, register
from .deep_conv import DeepConv
from .loading.names import rename_on_loading
from .vanillanet import VanillaNet

try:
    from mmpretrain.models.heads import ClsHead
except ImportError as error:
    raise UsageError(
        f'VanillaNetClsHead needs mmpretrain, which cannot be imported ({error}): install it with '
        'pip install mmpretrain.'
    ) from error


@register(MODELS)
class VanillaNetClsHead(ClsHead):
    """Global average pooling, dropout, and a deep convolution that returns the logits.

    As in the authors' code, the deep convolution has ``num_classes`` channels between its two
    convolutions, and no norm after the second.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the backbone's last feature map.
        dropout: Probability of dropping a channel in training.
        loss: The loss, or its config. By default the paper's (Table 7): binary cross entropy, the
            mean over images and classes, on targets smoothed by 0.1, hard or soft (Mixup, CutMix).
        deploy: Whether to build the deploy form, for weights that are fused already.
        norm_cfg: Config of the batch norm. Its eps is 1e-6 unless the config sets one.
        merged: Whether to build the merged form; the backbone takes the same argument.
        init_cfg: Weight initialization; the backbone's by default.
        kwargs: ``topk`` and ``cal_acc`` of mmpretrain's ClsHead.
    """

    @checked(num_classes=AT_LEAST_1, in_channels=AT_LEAST_1, dropout=FROM_0_TO_1)
    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        dropout: float = 0.05,
        loss: Union[dict, nn.Module, None] = None,
        deploy: bool = False,
        norm_cfg: dict = dict(type='BN'),
        merged: bool = False,
        init_cfg: Union[dict, List[dict], None] = None,
        **kwargs: Any,
    ) -> None:
        if loss is None:
            # mmpretrain sums this loss over the classes; the weight makes it a mean.
            loss = dict(
                type='mmpretrain.LabelSmoothLoss',
                label_smooth_val=0.1,
                num_classes=num_classes,
                mode='original',
                use_sigmoid=True,
                loss_weight=1 / num_classes,
            )
        super().__init__(loss, init_cfg=init_cfg or VanillaNet.default_init_cfg, **kwargs)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dropout = nn.Dropout(dropout)
        form = dict(norm_cfg=norm_cfg, final_norm=False, merged=merged, deploy=deploy)
        self.conv = DeepConv(in_channels, num_classes, mid_channels=num_classes, **form)
        rename_on_loading(self)

    def pre_logits(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Averages the last stage's features, (N, C, H, W) to (N, C)."""
        return feats[-1].mean((2, 3))

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Logits (N, num_classes) from the backbone's features, of which it uses the last."""
        x = self.dropout(self.pre_logits(feats))
        return self.conv(x[..., None, None]).flatten(1)  # (N, C, 1, 1) to (N, num_classes)

    def switch_to_deploy(self) -> None:
        """Fuses the head in place; raises UsageError if λ is not 1."""
        self.conv.switch_to_deploy()
