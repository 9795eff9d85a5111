"""Prompts to embeddings: tokenizer, text encoder, words, and edits of what the encoder reads."""
