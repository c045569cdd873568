"""The job scripts of a cluster, written out."""

from collections.abc import Sequence
from pathlib import Path

from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.cluster.limits import job_of
from megatron_poro.cluster.templates import checkout, render, site_file, slurm_folder
from megatron_poro.config.cluster import ClusterConfig


def training_script(cluster: ClusterConfig, folder: JobFolder, *, name: str, nodes: int, working_folder: Path) -> str:
    """The script that is every job of a training run.

    Args:
        cluster: where it runs.
        folder: where its files are; an absolute path.
        name: the name of the run's jobs.
        nodes: nodes of each job.
        working_folder: what relative paths in the config of the run start from.
    """
    minutes = -(-cluster.preflight_seconds // 60) if cluster.preflight else 0
    return render(
        "train.sbatch",
        options=[
            *_options(cluster, "train", name=name, nodes=nodes, working_folder=working_folder),
            f"--output={folder.logs}/%j.out",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{cluster.signal_seconds}",
        ],
        words={"JOB_FOLDER": folder.path, **_environment(cluster, working_folder, folder.run)},
        raw={"PREFLIGHT_MINUTES": str(minutes)},
    )


def command_script(
    cluster: ClusterConfig,
    kind: str,
    words: str,
    *,
    name: str,
    working_folder: Path,
    array: int | None = None,
    after: str | None = None,
    folders: Sequence[Path] = (),
) -> str:
    """The script of a job that is one ``poro`` command, or of an array of them that share the work of one.

    Args:
        cluster: where it runs.
        kind: which section of the cluster says what it asks for.
        words: the command, quoted for a shell.
        name: the name of the job.
        working_folder: what relative paths in the command start from.
        array: number of jobs that do a part each.
        after: a job that must have succeeded before.
        folders: further folders that may hold the site's file.
    """
    options = _options(cluster, kind, name=name, nodes=job_of(cluster, kind).nodes or 1, working_folder=working_folder)
    options += [f"--array=0-{array - 1}"] if array else []
    options += [f"--dependency=afterok:{after}"] if after else []
    options += [f"--output=%x-{'%A_%a' if array else '%j'}.out", "--open-mode=append", "--requeue"]
    return render(
        "tokenize.sbatch" if array else "command.sbatch",
        options=options,
        words={
            "SLURM_FOLDER": slurm_folder(),
            "SITE_FILE": site_file(cluster.site, folders),
            **_environment(cluster, working_folder),
        },
        raw={"WORDS": words, "ARRAY": str(array)},
    )


def _options(cluster: ClusterConfig, kind: str, *, name: str, nodes: int, working_folder: Path) -> list[str]:
    """What a job asks for, as options of sbatch."""
    job = job_of(cluster, kind)
    return [
        f"--job-name={name}",
        *([f"--account={cluster.account}"] if cluster.account else []),
        *([f"--partition={job.partition}"] if job.partition else []),
        f"--time={job.walltime}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={job.tasks_per_node}",
        f"--cpus-per-task={job.cpus_per_task}",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        *([f"--mem={job.memory}"] if job.memory else []),
        *(["--exclusive"] if job.exclusive else []),
        "--hint=nomultithread",
        f"--chdir={working_folder}",
        *cluster.options,
    ]


def _environment(cluster: ClusterConfig, *seen: Path) -> dict[str, object]:
    """How a job finds Python and this package; ``seen`` are folders that the container must show."""
    root = checkout()
    binds = [*cluster.binds, *map(str, seen), *([str(root)] if root else [])] if cluster.container else []
    return {
        "PYTHON": cluster.python,
        "CONTAINER": cluster.container or "",
        "BINDS": ",".join(dict.fromkeys(binds)),
        "CHECKOUT": root or "",
    }
