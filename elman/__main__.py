"""`python -m elman` is the command `elman`, for what starts modules: torchrun -m elman …"""

from elman.app.cli import main

main()
