# Like retinanet_vanillanet-6_digits.py, but merged once λ = 1, for the rest of the run.
_base_ = './retinanet_vanillanet-6_digits.py'

custom_hooks = [dict(_base_.custom_hooks[0], merge=True)]
