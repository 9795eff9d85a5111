"""Training the built-in model from nothing: world, tokenizer, VAE, text encoder and UNet."""
