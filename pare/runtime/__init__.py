"""What a run needs of the machine: device, memory, numerics, and settings that are valid."""
