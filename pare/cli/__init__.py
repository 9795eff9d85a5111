"""The command `pare`: `main.py` puts the files in `commands/` together."""
