"""Faults injected on purpose into real trainings: ``python -m tests.faults --minutes M --seed S``."""
