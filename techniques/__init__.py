"""The editing techniques: one readable file each, every one with its own visible loop."""
