"""Targets that transactions are applied to. Each follows the ``Sink`` protocol and nothing else."""
