"""What a Runner uses: hooks, an optimizer constructor, and merging during a run."""

from .hooks.atomic_checkpoint_hook import AtomicCheckpointHook
from .hooks.deep_training_hook import DeepTrainingHook
from .hooks.run_check_hook import RunCheckHook
from .optimizers.layer_decay_optim_wrapper_constructor import LayerDecayOptimWrapperConstructor

__all__ = [
    'AtomicCheckpointHook',
    'DeepTrainingHook',
    'LayerDecayOptimWrapperConstructor',
    'RunCheckHook',
]
