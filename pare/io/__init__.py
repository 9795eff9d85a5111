"""Images in and out, how they differ, and files that are written whole or not at all."""
