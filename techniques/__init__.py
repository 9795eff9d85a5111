"""The editing techniques: each a readable file or a small folder, with its own visible loop."""
