"""`python -m difftilt.cli` is the command `difftilt`, for torchrun."""

from difftilt.cli.main import main

main()
