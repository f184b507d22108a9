"""`python -m rddlib.cli`, for torchrun and accelerate launch, which start modules."""

from rddlib.cli import main

main()
