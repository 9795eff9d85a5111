"""The recipe that every image carries, and the run made again from it."""
