"""What a run needs of the machine: device, memory, numbers that go wrong, settings that make sense."""
