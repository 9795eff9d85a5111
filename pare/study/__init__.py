"""Studying a model: `inspect` looks at one at rest, `record` at one at work."""
