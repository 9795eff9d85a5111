"""The VAE.  Read `autoencoder.py`, then `encoder.py`, `decoder.py` and `vae_blocks.py`."""

from pare.vae.autoencoder import AutoencoderKL, Posterior

__all__ = ["AutoencoderKL", "Posterior"]
