_base_ = 'mmpretrain::_base_/default_runtime.py'

# As many as the authors keep. Each has the averaged copy and LAMB's moments: gigabytes.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=10))
