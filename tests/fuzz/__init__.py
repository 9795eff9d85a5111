"""Coverage-guided fuzzing of everything in pare that parses: `make fuzz`."""
