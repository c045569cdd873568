"""The schema of a training run. Every field says its unit and what follows from it; ``poro config show`` prints values.

Counts in tokens, samples or bytes are integers below this line; in YAML and on the command line they may also be
written ``10B``, ``4M`` or ``2k`` (fields marked with ``count_field``).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from megatron_poro.config.data import DataConfig
from megatron_poro.config.guards import GuardsConfig
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.profile import ProfileConfig


def count_field(default: Any = MISSING) -> Any:
    """A field that counts tokens, samples or bytes: accepts ``10B`` in YAML, is an ``int`` after loading."""
    return field(default=default, metadata={"count": True})


class EngineKind(str, Enum):
    """What runs a step."""

    LOCAL = "local"
    DEEPSPEED = "deepspeed"


class TokenizerKind(str, Enum):
    """How a tokenizer that is trained here finds its tokens."""

    BLOOM = "bloom"
    SENTENCEPIECE = "sentencepiece"


class Precision(str, Enum):
    """Number format of weights and activations; masters, moments and gradient accumulation are always fp32."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def item_bytes(self) -> int:
        """Bytes of a number."""
        return 2 if self is Precision.BF16 else 4


class PipelineSchedule(str, Enum):
    """Order in which a pipeline works through the microbatches."""

    ONE_F_ONE_B = "1f1b"
    DUALPIPEV = "dualpipev"


class Recompute(str, Enum):
    """Which activations are computed a second time in the backward pass instead of being kept."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class AttentionBackend(str, Enum):
    """Which kernel computes attention."""

    AUTO = "auto"
    EAGER = "eager"
    SDPA = "sdpa"
    FLASH = "flash"
    TILED = "tiled"
    FLEX = "flex"


class StageSplit(str, Enum):
    """How layers are dealt to pipeline stages."""

    LAYERS = "layers"
    COST = "cost"


class TruthCheck(str, Enum):
    """Start-up proof that the gradients of this layout are those of one process."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LearningRateKind(str, Enum):
    """Shape of the learning rate after the warm-up."""

    COSINE = "cosine"
    CONSTANT = "constant"


class LabelUnit(str, Enum):
    """What the name of a milestone counts its tokens in."""

    AUTO = "auto"
    K = "k"
    M = "M"
    B = "B"
    T = "T"


@dataclass(kw_only=True)
class RunSection:
    """What this run is called and where it lives."""

    name: str = MISSING
    """Name of the run: letters, digits, dots, dashes, underscores; its folder is <root>/<name>."""

    root: str = "runs"
    """Folder that holds run folders."""

    seed: int = 42
    """Seed of the initial weights and of dropout."""

    stop_after_steps: int | None = None
    """Save and leave after this optimizer step although the run is not finished; null runs to the end."""

    lease_seconds: float = 60.0
    """A job on another machine takes the run over when its holder has given no sign for so many seconds. More than the
    file system may show old contents for."""


@dataclass(kw_only=True)
class ParallelConfig:
    """The process grid; the product of the three sizes is the number of processes."""

    tensor: int = 1
    """Processes that share each layer. Must divide model.num_heads and model.vocab_size."""

    pipeline: int = 1
    """Number of pipeline stages."""

    data: int | None = None
    """Replicas of the model; null takes what the number of processes leaves."""

    sequence: bool = False
    """Cut what lies outside of attention and feed-forward (norms, dropout, residuals, what stages send each other and
    what recomputation keeps) along the sequence over the tensor processes, for less memory. A forward pass sends as
    many bytes as without, a backward pass half as many again. parallel.tensor must divide data.sequence_length; where
    it is 1 there is nothing to cut."""

    stage_split: StageSplit = StageSplit.LAYERS
    """layers: equal numbers of blocks, embedding and head counting as one each. cost: equal forward cost."""


@dataclass(kw_only=True)
class EngineConfig:
    """How a step is computed; none of it changes what is computed."""

    kind: EngineKind = EngineKind.DEEPSPEED
    """local: one process, plain torch. deepspeed: pipeline engine, any layout."""

    precision: Precision = Precision.BF16
    """Format of weights and activations."""

    pipeline_schedule: PipelineSchedule = PipelineSchedule.ONE_F_ONE_B
    """1f1b, or dualpipev (needs parallel.pipeline >= 2 and at least 2 * parallel.pipeline accumulation steps)."""

    microbatch_samples: int = 1
    """Samples in one forward pass of one replica."""

    recompute: Recompute = Recompute.FULL
    """none keeps all activations, selective recomputes attention, full recomputes each block from its input."""

    recompute_blocks: list[int] | None = None
    """How many blocks of each pipeline rank are recomputed as engine.recompute says, one number for each rank; the rest
    keep all activations. They are the first ones of the rank in the order of the model. null recomputes all blocks.
    `poro plan` prints the fewest that fit a device."""

    deferred_weight_gradients: int | None = None
    """Compute weight gradients apart from backward passes, to wait less in a pipeline: at most so many microbatches'
    until a rank has had its last backward pass. 0 computes them once a stage's input gradient is sent, and rank r has
    use for up to r (parallel.pipeline - 1 is most, and fastest); each takes memory. null computes them inside of
    backward passes. For 1f1b with parallel.pipeline >= 2."""

    attention: AttentionBackend = AttentionBackend.AUTO
    """auto takes the fastest for device and length; eager is the reference, sdpa is PyTorch's kernel with a bias
    tensor, flash is a causal flash kernel with ALiBi in extra columns of the keys; tiled leaves out what the mask hides
    and is for engine.compile on a CPU: slow without it, refused on a GPU; flex needs a GPU."""

    compile: bool = False
    """Compile blocks and loss with torch.compile: faster steps after a first one that takes ten seconds to a minute
    longer. Needs a C++ compiler on a CPU, and triton on a GPU."""

    reproducible: bool = False
    """Make losses, gradients, weights and moments equal bit for bit at every number of replicas, accumulation steps and
    pipeline stages, for the same parallel.tensor, parallel.sequence, microbatch_samples, kind of device, CPU threads
    and libraries. Takes 8 bytes more per parameter of this process and 16 per number of its largest matrix, four times
    the bytes of the gradient reduction, all of it after the last pass, and some time."""

    truth_check: TruthCheck = TruthCheck.AUTO
    """Compare this layout's gradients with one process's before the first step: on, off (also true, false), or auto (on
    below 50M parameters, else a cheap variant on a model cut down to a few layers)."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW; norms and biases are not decayed, the embedding is."""

    beta1: float = 0.9
    """Decay of the first moment."""

    beta2: float = 0.95
    """Decay of the second moment."""

    epsilon: float = 1e-8
    """Added to the root of the second moment."""

    weight_decay: float = 0.1
    """Decoupled weight decay per unit of learning rate."""

    clip_norm: float = 1.0
    """Largest global L2 norm of a gradient; 0 switches clipping off."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """How long the run is and how fast it learns, counted in tokens."""

    total_tokens: int = count_field()
    """Length of the run in tokens; rounded down to whole optimizer steps."""

    global_batch_samples: int = count_field()
    """Samples in one optimizer step, over all replicas."""

    kind: LearningRateKind = LearningRateKind.COSINE
    """Shape of the learning rate after the warm-up."""

    learning_rate: float = MISSING
    """Highest learning rate, reached at the end of the warm-up."""

    min_learning_rate: float = 0.0
    """Learning rate at the end of the decay and after it."""

    warmup_tokens: int = count_field(0)
    """Tokens over which the learning rate rises linearly from 0, counted from the start of the run. The first step runs
    at 0."""

    decay_tokens: int | None = count_field(None)
    """Tokens at which the decay ends, counted from the start of the run: the warm-up lies inside. It may be more than
    total_tokens, and then the run ends above min_learning_rate; null is total_tokens."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """The tokenizer the corpora were made with."""

    path: str = MISSING
    """Folder with tokenizer.json and tokenizer_config.json."""

    kind: TokenizerKind = TokenizerKind.BLOOM
    """What `poro data prepare` trains where path holds no tokenizer yet: bloom (byte-level BPE behind BLOOM's split, as
    in Poro) or sentencepiece (BPE with byte fallback). A tokenizer that is there is used as it is."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """When the state of a run is written, and how much of it is kept."""

    every_steps: int = 0
    """Save after every so many optimizer steps; 0 saves only at the end, at stops and at milestones."""

    keep_last: int = 2
    """Number of newest checkpoints kept; milestones are kept for ever."""

    asynchronous: bool = True
    """Train on while a checkpoint is written. Takes 12 bytes of host memory per parameter of this process, and loses
    the steps since the last committed checkpoint if the run dies in between; false waits for each save."""


@dataclass(kw_only=True)
class ResumeConfig:
    """How a run that is started again goes on."""

    enabled: bool = True
    """Continue from the newest valid checkpoint of the run folder if there is one; false refuses to start where there
    is one."""

    accept: list[str] = field(default_factory=list)
    """Keys of optimizer.* and schedule.* that may differ from the checkpoint's: exact keys, or patterns such as
    optimizer.*. What defines the run (model, data, seed, batch, length) can never differ, all else always may."""


@dataclass(kw_only=True)
class ExportConfig:
    """When a checkpoint becomes a milestone, to be exported as a Hugging Face model."""

    every_tokens: int = count_field(0)
    """A milestone at the last step that does not pass each multiple of so many tokens, and at the end; 0 for the end
    only. At least the tokens of one step."""

    label_unit: LabelUnit = LabelUnit.AUTO
    """What a milestone's name, which is also that of its branch, counts tokens in. auto: the largest of B, M and k that
    gives a whole number, such as 500B. k, M, B, T: always this one, such as 0.5T."""

    max_shard_bytes: int = count_field(5_000_000_000)
    """Largest size of one safetensors file."""


@dataclass(kw_only=True)
class ValidationConfig:
    """The validation loop."""

    every_steps: int = 0
    """Validate after every so many optimizer steps and at the end; 0 switches it off."""

    samples: int = count_field(0)
    """Samples of the validation mixture, the same ones every time; rounded up to whole microbatches."""


@dataclass(kw_only=True)
class MetricsConfig:
    """Where numbers go."""

    log_every_steps: int = 1
    """Write metrics once per so many optimizer steps."""

    wandb: bool = False
    """Also write to Weights & Biases: online with an API key in the environment, offline without."""

    wandb_project: str = "megatron_poro"
    """Project name at Weights & Biases."""

    peak_tflops: float | None = None
    """Peak TFLOP/s of one device in engine.precision, for model FLOPs utilisation; null leaves MFU out."""


@dataclass(kw_only=True)
class TrainConfig:
    """The whole run."""

    run: RunSection = field(default_factory=RunSection)
    model: BloomConfig = MISSING
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
