"""Faults injected on purpose into real publishing: ``python -m tests.publishing --trials N --seed S``.

A trial publishes the three milestones of a tiny run with ``poro publish``, a process of its own, to a hub that fails or
kills the process at drawn requests; then it publishes again without faults. All the while another process reads
``main``.
"""
