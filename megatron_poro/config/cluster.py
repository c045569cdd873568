"""The schema of ``poro submit``: what to ask a Slurm cluster for, and what that cluster allows.

It is composed beside the config of a run, never into it: which machine computes a run is no part of the run.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(kw_only=True)
class PartitionConfig:
    """A queue of the cluster, and the largest job it takes."""

    name: str = MISSING
    """Name that Slurm knows it by."""

    max_walltime: str = MISSING
    """Longest job: days-hours:minutes:seconds, hours:minutes:seconds or minutes, as Slurm writes them."""

    max_nodes: int = MISSING
    """Most nodes of one job."""

    max_gpus_per_node: int = 0
    """GPUs of a node as Slurm counts them; 0 for nodes without."""

    max_cpus_per_node: int = MISSING
    """Cores of a node that a job may use."""


@dataclass(kw_only=True)
class JobConfig:
    """What a job asks for."""

    partition: str | None = None
    """One of cluster.partitions; null leaves the choice to Slurm."""

    walltime: str = "1-00:00:00"
    """Time limit of one job, written like a partition's. A training run takes as many jobs as it needs."""

    nodes: int | None = None
    """Nodes of one job; null is 1, and for training what the process grid needs."""

    tasks_per_node: int = 1
    """Processes on each node; for training one per GPU."""

    cpus_per_task: int = 1
    """Cores of each process."""

    gpus_per_node: int = 0
    """GPUs of each node, as Slurm counts them (a GCD is one)."""

    memory: str | None = None
    """Host memory of each node, such as 480G; null takes the partition's default."""

    exclusive: bool = False
    """Share the nodes with no other job."""


@dataclass(kw_only=True)
class ClusterConfig:
    """A Slurm cluster, and what each kind of job asks it for."""

    site: str = MISSING
    """Name of the file in slurm/sites with what this cluster needs in shell: modules, variables, CPU masks."""

    account: str | None = MISSING
    """Project that is billed, such as project_465000000; null leaves it to Slurm."""

    partitions: list[PartitionConfig] = field(default_factory=list)
    """Queues whose limits are checked before a job is submitted; empty checks nothing."""

    train: JobConfig = field(default_factory=JobConfig)
    """A job of a training run."""

    tokenize: JobConfig = field(default_factory=JobConfig)
    """One element of an array of jobs that tokenise."""

    export: JobConfig = field(default_factory=JobConfig)
    """Checkpoints to Hugging Face models."""

    publish: JobConfig = field(default_factory=JobConfig)
    """Uploads."""

    evaluate: JobConfig = field(default_factory=JobConfig)
    """Text from an exported model."""

    python: str = "python"
    """Interpreter that has this package; in the container, if there is one."""

    container: str | None = None
    """Image that every command runs in (singularity exec); null runs on the node itself."""

    binds: list[str] = field(default_factory=list)
    """Folders of the node that the container sees, besides the working directory."""

    options: list[str] = field(default_factory=list)
    """Further options of sbatch for every job, such as --qos=high or --reservation=NAME."""

    signal_seconds: int = 600
    """A training job is told to save and leave so many seconds before its time limit; more than a save takes."""

    startup_seconds: int = 600
    """Time from the start of a job to its first step, used to say how many jobs a run needs."""

    max_fruitless_jobs: int = 3
    """After so many failed jobs in a row that brought no newer checkpoint the chain stops for a person to look."""

    preflight: bool = True
    """Look at every node before training: devices, CPU masks, network, shared memory, disk."""

    preflight_network: bool = True
    """Also time an all-reduce between pairs of nodes."""

    preflight_seconds: int = 600
    """A look at the nodes that takes longer has failed."""

    interfaces: list[str] = field(default_factory=list)
    """Network interfaces that must be up on every node."""

    min_shared_memory_bytes: int = field(default=1_000_000_000, metadata={"count": True})
    """Least room in /dev/shm of every node."""

    min_free_bytes: int = field(default=0, metadata={"count": True})
    """Least free space on the file system of the run folder; a job does not start below it."""

    slow_factor: float = 2.0
    """A node whose all-reduce takes so many times the median, with every partner it had, is called slow."""

    hardware: str | None = None
    """Its devices and links: a file of configs/hardware, which `poro plan cluster=...` takes. A run that needs more
    memory there than tensors can have, as planned, is refused. null does not plan."""

    devices_per_module: int = 1
    """Neighbouring GPUs that share a package (2 on an MI250X): tensor ranks should."""

    assumed_tflops: float | None = None
    """Hardware TFLOP/s of one device, for saying how long a run takes before it has measured its own speed; null does
    not say."""

    gpu_hours_per_node_hour: float | None = None
    """What an hour of a node is billed as; null does not say."""


@dataclass(kw_only=True)
class SubmitConfig:
    """What ``poro submit`` takes besides the config of a run."""

    cluster: ClusterConfig = MISSING
    """The cluster: a file of configs/cluster."""

    nodes: int | None = None
    """Short for cluster.train.nodes."""
