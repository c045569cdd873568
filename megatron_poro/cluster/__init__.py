"""Slurm clusters: what to ask them for, how a run goes from job to job, and what is known of it from outside."""
