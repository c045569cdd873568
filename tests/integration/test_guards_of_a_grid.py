"""Faults of single processes in real runs of several: seen by all, named, and harmful where the guard is off."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.metrics import names
from megatron_poro.models.bloom import BloomBlock
from megatron_poro.train.exit_code import ExitCode
from tests.faults import guards, hangs
from tests.faults.hangs import PHASES, Fault, Way
from tests.faults.poisons import SPIKE, Place, Poison
from tests.faults.tally import Budget
from tests.integration.toy import BATCH, TOKENS_PER_STEP, RunOnDisk, ToyCorpora
from tests.support.live_run import LiveRun, start

GRID = ("engine=deepspeed", "engine.microbatch_samples=2", "engine.truth_check=off")


def _run(
    corpora: ToyCorpora,
    root: Path,
    *changes: str,
    world: int = 2,
    prepare: Callable[[int], None] | None = None,
    during: Callable[[LiveRun], None] = lambda live: None,
) -> tuple[list[int], str]:
    """Exit codes and output of a run."""
    with start(corpora.arguments(root, *GRID, *changes), world=world, folder=root / "logs", prepare=prepare) as live:
        during(live)
        return live.wait(120.0), live.output()


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "fault", "victim"),
    [
        (("parallel.tensor=2", "engine.precision=bf16"), Poison(Place.ACTIVATION, float("nan"), (15,), BATCH), 1),
        (("parallel.data=2", "engine.precision=fp32"), Poison(Place.GRADIENT, SPIKE, (15,), BATCH), 1),
    ],
    ids=["a NaN in one tensor rank", "a spike in one replica"],
)
def test_fault_in_one_process_is_skipped_by_all(
    corpora: ToyCorpora, tmp_path: Path, layout: Sequence[str], fault: Poison, victim: int
) -> None:
    assert guards.judge(corpora, tmp_path, layout, fault, victim)


# --- copies ----------------------------------------------------------------------------------------------------------


def _flip_a_bit(rank: int, *, before_step: int) -> Callable[[int], None]:
    """Flips the lowest bit of one weight of one process."""

    def prepare(here: int) -> None:
        original = PipelineEngine.train_step

        def train_step(engine: PipelineEngine, microbatches: object, **options: int) -> object:
            if options["consumed_samples"] == (before_step - 1) * BATCH:
                copy = next(c for c in engine.copies() if c.name == "blocks.0.mlp_norm.weight" and c.kind == "master")
                copy.flat[0] += 2.0**-20
            return original(engine, microbatches, **options)  # type: ignore[arg-type]

        if here == rank:
            PipelineEngine.train_step = train_step  # type: ignore[assignment,method-assign]

    return prepare


def test_copy_that_differs_ends_the_run_before_it_is_saved(corpora: ToyCorpora, tmp_path: Path) -> None:
    """Without the check the run goes on to its end with a model that is none, and saves it."""
    layout = ("parallel.tensor=2", "engine.precision=fp32", "checkpoint.every_steps=2")
    outcomes = {}
    for every in (3, 0):
        codes, told = _run(
            corpora,
            tmp_path / str(every),
            *layout,
            f"guards.replica_check_every_steps={every}",
            prepare=_flip_a_bit(1, before_step=5),
        )
        # told once, or twice where the process that knows who was first has already gone
        outcomes[every] = codes, RunOnDisk(tmp_path / str(every)).steps(), "must hold the same values" in told
    assert outcomes[3] == ([ExitCode.REPLICAS_DIFFER] * 2, [2, 4], True)
    assert outcomes[0] == ([ExitCode.FINISHED] * 2, [6, 8], False)


# --- processes that hang, die or are slow ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Way.SLEEP, Way.STOP, Way.KILL])
def test_process_that_stops_ends_the_run_in_time_and_is_named(corpora: ToyCorpora, tmp_path: Path, way: Way) -> None:
    phase = next(phase for phase in PHASES if phase.name == "forward")
    _, named = hangs.judge(corpora, tmp_path / "run", Fault(way, phase, 2))
    assert named


def test_hung_run_stays_for_ever_without_the_watchdog(corpora: ToyCorpora, tmp_path: Path) -> None:
    sign, phase = tmp_path / "fault", next(phase for phase in PHASES if phase.name == "forward")
    fault = Fault(Way.SLEEP, phase, 1)
    off = ("guards.hang_seconds=0", "guards.hang_startup_seconds=0", "schedule.total_tokens=100k", "parallel.tensor=2")

    def during(live: LiveRun) -> None:
        live.wait_until(sign.exists, 60.0)
        with pytest.raises(TimeoutError):
            live.wait(hangs.HANG_SECONDS + hangs.GRACE_SECONDS)

    codes, _ = _run(
        corpora,
        tmp_path,
        *off,
        prepare=lambda rank: fault.inject(sign) if rank == fault.rank else None,
        during=during,
    )
    assert set(codes) == {-9}, "the test had to end it"


def test_stacks_are_written_on_demand_while_the_run_goes_on(corpora: ToyCorpora, tmp_path: Path) -> None:
    request = tmp_path / "toy" / "control" / "dump-stacks"
    metrics = tmp_path / "toy" / "metrics.jsonl"

    def during(live: LiveRun) -> None:
        live.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)
        request.touch()
        live.wait_until(lambda: not request.exists())
        (tmp_path / "toy" / "control" / "stop").touch()

    codes, told = _run(
        corpora, tmp_path, "parallel.pipeline=2", f"schedule.total_tokens={1000 * TOKENS_PER_STEP}", during=during
    )
    assert codes == [ExitCode.FINISHED] * 2
    (folder,) = (tmp_path / "toy" / "stacks").iterdir()
    assert {path.name for path in folder.iterdir()} == {"rank_000.txt", "rank_001.txt", "report.txt"}
    assert "stacks as asked" in told


@pytest.mark.parametrize("limit", [1.1, 0.0])
def test_slow_process_is_named_within_twenty_steps(
    corpora: ToyCorpora, tmp_path: Path, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is counted in forward passes of a known length, so that the load of the machine plays no part."""
    ticks = [0.0]
    monkeypatch.setattr("megatron_poro.parallel.step_clock.time.perf_counter", lambda: ticks[0])

    def prepare(rank: int) -> None:
        original = BloomBlock.forward

        def forward(block: BloomBlock, hidden: object) -> object:
            ticks[0] += 0.12 if rank == 1 else 0.10
            return original(block, hidden)  # type: ignore[arg-type]

        BloomBlock.forward = forward  # type: ignore[assignment,method-assign]

    steps = 20
    codes, told = _run(
        corpora,
        tmp_path,
        "parallel.tensor=2",
        f"schedule.total_tokens={steps * TOKENS_PER_STEP}",
        f"guards.straggler_ratio={limit}",
        prepare=prepare,
    )
    assert codes == [ExitCode.FINISHED] * 2
    assert ("has computed 1.20 times as long" in told) == (limit > 0)
    ratios = [
        line[names.SLOWEST_PROCESS.key] for line in RunOnDisk(tmp_path).lines() if names.SLOWEST_PROCESS.key in line
    ]
    assert ratios == ([pytest.approx(1.2)] * 4 if limit else [])


# --- the campaigns themselves ----------------------------------------------------------------------------------------


def test_campaigns_count_trials_and_draw_the_same_from_the_same_seed(tmp_path: Path) -> None:
    drawn = [[guards.draw(random.Random(seed)) for seed in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1] or all(str(a) == str(b) for a, b in zip(*drawn, strict=True))  # NaN is not itself
    tally = hangs.campaign(Budget(trials=1), random.Random(1), tmp_path)
    assert (tally.trials, tally.failures) == (1, [])
