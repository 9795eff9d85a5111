"""The UNet.  Read `unet.py` first, then `blocks.py`, `resnet.py` and `transformer.py`."""

from pare.unet.unet import UNet

__all__ = ["UNet"]
