# Like vanillanet-13_8xb128_in1k.py, but merged once λ = 1, for the 200 epochs that are left.
_base_ = './vanillanet-13_8xb128_in1k.py'

custom_hooks = [dict(_base_.custom_hooks[0], merge=True), _base_.custom_hooks[1]]
