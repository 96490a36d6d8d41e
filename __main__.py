"""`python -m umbel`: the command `umbel`, where its script is not on the path."""

from .cli.main import main

main()
