"""`python -m integrand.service.cli`, as Ray's jobs start it."""

from integrand.service.cli import main

main()
