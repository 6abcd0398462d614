from .atomic_checkpoint_hook import AtomicCheckpointHook
from .deep_training_hook import DeepTrainingHook
from .layer_decay_optim_wrapper_constructor import LayerDecayOptimWrapperConstructor

__all__ = ['AtomicCheckpointHook', 'DeepTrainingHook', 'LayerDecayOptimWrapperConstructor']
