"""The same scripts with a container, for which a stand-in of singularity makes a root folder of its own."""

import sys
from collections.abc import Callable

from tests.slurm.chained_run import ChainedRun
from tests.support.slurm.simulation import HERE


def test_every_command_runs_in_the_container(chained: Callable[..., ChainedRun], undisturbed: dict[str, float]) -> None:
    run = chained()
    programs = run.folder / "programs"
    programs.mkdir()
    (programs / "singularity").symlink_to(HERE / "fake_singularity.sh")
    image, calls = run.folder / "image.sif", run.folder / "calls"
    image.touch()
    run.cluster = {"container": str(image), "binds": ["/opt"]}
    inside = ":".join({sys.prefix, sys.base_prefix} - {"/usr"})
    run.site = "\n".join(
        [
            f"export PATH={programs}:$PATH FAKE_SINGULARITY_LOG={calls} FAKE_SINGULARITY_INSIDE={inside}",
            "export WITH_CONDA='export FROM_IMAGE=yes'",
        ]
    )
    run.submit()
    run.wait_for_step(5)
    run.slurm.run("scancel", "--batch", "--signal=USR1", run.running())
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]
    assert [event["code"] for event in run.events("end")] == [75, 0], "the signal goes through to the command"
    words = calls.read_text()
    assert "exec --bind /opt," in words
    assert " job begin " in words
    assert " train --config-dir " in words
