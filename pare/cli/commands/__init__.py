"""One file a command, each parsing and printing only; `pare.cli.main` puts them together."""
