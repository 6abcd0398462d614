_base_ = 'mmpretrain::_base_/default_runtime.py'

# As many as the authors keep: with the averaged copy and LAMB's moments each takes gigabytes.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=10))
