# Like retinanet_vanillanet13.py, with about half the arithmetic: the weights that training starts
# from are past the λ schedule, so each pair is merged from the first iteration.
_base_ = '../retinanet_vanillanet13.py'

model = dict(backbone=dict(merged=True))
