"""`python -m graphsurgery.cli`, as launchers such as torchrun want it."""

from graphsurgery.cli import main

main()
