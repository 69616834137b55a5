"""Cells on a Slurm cluster: an array of hosts that drain one queue, a folder on the disk that they share."""
