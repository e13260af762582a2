"""The command line: the one door that reads the environment and writes to a terminal."""

from integrand.service.cli.commands import main as main
