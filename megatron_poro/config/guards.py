"""What a run watches over while it trains, and what it does when something is wrong."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class GuardsConfig:
    """Guards of a run that is under way. Each is switched off by the value that its text names."""

    skip_not_finite: bool = True
    """Pass over a step whose loss or gradient is not finite: its samples are not learned from. false ends the run
    there; such a step never changes a weight."""

    spike_sigma: float = 6.0
    """Pass over a step whose loss, or whose gradient norm on a logarithmic scale, lies so many standard deviations
    above the mean of the last accepted steps; 0 lets every finite step pass."""

    spike_window_steps: int = 128
    """Accepted steps whose mean and standard deviation are taken; nothing is a spike before there are so many."""

    max_skips_in_row: int = 5
    """After so many steps in a row were passed over, go back to a checkpoint before the first of them and do not learn
    from what led there; 0 goes on passing over steps for ever."""

    rewind_margin_steps: int = 10
    """Steps before the first of those that are not learned from either. Doubles each time the run has to go back at the
    same place."""

    max_rewinds: int = 3
    """How often the run goes back by itself at one place (within guards.spike_window_steps of the last time) before it
    ends and asks for a person; 0 ends it at once."""

    replica_check_every_steps: int = 100
    """Compare everything that several processes hold alike, bit for bit, after every so many steps; 0 never. The run
    ends without saving if a copy differs."""

    straggler_ratio: float = 1.1
    """Name a process that computes so many times as long as the others of its stage; 0 switches it off."""

    hang_seconds: float = 600.0
    """A process that does not get on for so many seconds writes down its stacks and those of all others, and the run
    ends; 0 waits for ever. More than the longest step, portion of a validation, or save."""

    hang_startup_seconds: float = 7200.0
    """The same before the first step is done, when indices are built and kernels compiled."""
