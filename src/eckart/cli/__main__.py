"""`python -m eckart.cli`, for launchers that start a module: torchrun --nproc-per-node 2 -m eckart.cli adapt …"""

from eckart.cli import main

main()
