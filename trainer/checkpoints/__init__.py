"""Checkpoints that are whole whenever the run is killed, and models that are sharded."""
