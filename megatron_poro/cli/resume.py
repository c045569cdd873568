"""``poro resume``: let a run that was stopped, or that needed a person, go on."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.cluster import slurm
from megatron_poro.cluster.chain import write_excluded
from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.cluster.ledger import append, read
from megatron_poro.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Runs ``poro resume``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    folder = JobFolder.at(arguments.run)
    settings = folder.settings()
    if slurm.is_here() and (jobs := slurm.jobs_called(settings.name)):
        raise ConfigError(
            f"{folder.run} has jobs in the queue ({', '.join(job.job for job in jobs)}); `poro status` shows them."
        )
    append(folder.ledger, "resume", forgive=arguments.forgive)
    write_excluded(folder)
    folder.stop_mark.unlink(missing_ok=True)
    if not slurm.is_here():
        print(f"Slurm's commands are not here; where they are, type\n  sbatch {shlex.quote(str(folder.script))}")
        return 0
    excluded = read(folder.ledger).excluded(settings.nodes)
    print(f"submitted job {slurm.submit(folder.script, excluded=excluded, singleton=True)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro resume",
        description="Let a run that was stopped, or whose jobs failed again and again, go on. To change its settings, "
        "submit it again: `poro submit` with the same run.name goes on, too.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was submitted")
    parser.add_argument("--forgive", action="store_true", help="forget the strikes of nodes")
    return parser
