from .imagenet_real import ImageNetReaL

__all__ = ['ImageNetReaL']
