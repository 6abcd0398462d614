"""Arguments of every public class: names, kinds and ranges."""

from typing import Dict, List, Optional, Sequence, Union

import numpy as np
import pytest
from mmengine.config import ConfigDict

from mmvanilla import SeriesActivation, UsageError, VanillaNet
from mmvanilla.arguments import ABOVE_0, AT_LEAST_0, accepted_names, check_value, checked, nearest
from mmvanilla.engine import AtomicCheckpointHook, DeepTrainingHook


class Base:
    def __init__(self, weight: float = 1.0, **kwargs) -> None:
        self.given = dict(kwargs, weight=weight)


class Part(Base):
    @checked(number=AT_LEAST_0)
    def __init__(self, number: int, name: Optional[str] = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.given.update(number=number, name=name)


class OwnPart(Part):
    """A user's, with an argument of its own."""

    def __init__(self, own: int = 1, **kwargs) -> None:
        super().__init__(number=2, **kwargs)


def test_right_arguments_pass():
    assert Part(3, weight=2).given == dict(number=3, name=None, weight=2)
    assert OwnPart(own='x', name='a').given == dict(number=2, name='a', weight=1.0)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Part(), "^Part: missing a required argument: 'number'"),
        (lambda: Part('3'), "^Part: number must be a whole number, 0 or more, got '3'"),
        (lambda: Part(-1), '^Part: number must be 0 or more, got -1'),
        (lambda: OwnPart(name=3), '^OwnPart: name must be text or None, got 3'),
        (lambda: VanillaNet('5', widen_factr=1), 'VanillaNet has no argument widen_factr: did you'),
        (lambda: VanillaNet('5', depth=50), 'no argument depth: it takes .*add _delete_=True'),
        (lambda: VanillaNet('5', widen_factor=float('nan')), 'widen_factor must be above 0'),
        (lambda: VanillaNet('5', widen_factor=1e-4), 'leaves no channel of 512'),
        (lambda: VanillaNet('5', norm_cfg=dict(type='BN', eps='1')), 'eps must be a number, above'),
        (lambda: VanillaNet(dict(channels=[8, 0], strides=[2])), 'channels of arch must be 1 or'),
        (lambda: SeriesActivation(8, act_num=1.5), 'act_num must be a whole number'),
        (lambda: DeepTrainingHook(decay_epoch=3), 'did you mean decay_epochs'),
        (lambda: DeepTrainingHook(decay_epochs='3'), 'decay_epochs must be a whole number'),
        (lambda: AtomicCheckpointHook(intervall=1), 'did you mean interval'),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_kinds_that_configs_have():
    VanillaNet(
        arch=ConfigDict(channels=[8, np.int64(8)], strides=(2,)),
        widen_factor=np.float32(1),
        in_channels=np.int64(3),
        out_indices=[0, 1],
        norm_cfg=ConfigDict(type='BN'),
        norm_eval=np.bool_(True),
        with_cp=0,
        init_cfg=[dict(type='Kaiming', layer='Conv2d')],
    )
    AtomicCheckpointHook(interval=1, save_optimizer=False)


@pytest.mark.parametrize(
    ('value', 'hint', 'fits'),
    [
        (3, int, True),
        (True, int, False),
        (3, float, True),
        ('3', float, False),
        (1, bool, True),
        (2, bool, False),
        ((1, 2), Sequence[int], True),
        ('12', Sequence[int], False),
        ([1, '2'], List[int], False),
        (dict(a=1), Dict[str, int], True),
        (None, Optional[dict], True),
        ([], Union[dict, List[dict], None], True),
        (object(), object, True),
    ],
)
def test_kinds(value, hint, fits):
    if fits:
        check_value('it', value, hint)
    else:
        with pytest.raises(UsageError, match='it must be'):
            check_value('it', value, hint)


def test_ranges_of_lists():
    with pytest.raises(UsageError, match=r'it must be above 0, got \[1, 0\]'):
        check_value('it', [1, 0], List[int], ABOVE_0)


def test_names():
    assert accepted_names(Part.__mro__) is None  # its base takes any
    assert accepted_names(VanillaNet.__mro__)[:2] == ['arch', 'in_channels']
    assert nearest('Act_Num', ['arch', 'act_num']) == 'act_num'
    assert nearest('xyz', ['arch', 'act_num']) is None
