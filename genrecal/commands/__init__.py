"""The command line by what its users do: parse, make a config, one call. cli.py puts them together."""
