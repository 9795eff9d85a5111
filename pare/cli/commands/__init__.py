"""One file a command, each parsing and printing only; `pare.cli` puts them together."""
