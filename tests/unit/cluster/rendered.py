"""The job scripts for LUMI as they are checked in. ``python -m tests.unit.cluster.rendered`` writes them anew."""

from pathlib import Path
from unittest import mock

from omegaconf import OmegaConf

from megatron_poro.cluster import scripts
from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.cluster.templates import slurm_folder
from megatron_poro.config.cluster import SubmitConfig
from megatron_poro.config.load import compose
from megatron_poro.config.typed import typed

GOLDEN = Path(__file__).parent / "golden"
SCRATCH = Path("/scratch/project_465000000")


def submit_config(*overrides: str) -> SubmitConfig:
    """What is asked of a cluster."""
    values = OmegaConf.to_container(compose(overrides, config_name="submit"), resolve=True)
    assert isinstance(values, dict)
    return typed(SubmitConfig, values)


def lumi(*overrides: str) -> SubmitConfig:
    """LUMI, with an account."""
    return submit_config("cluster=lumi", "cluster.account=project_465000000", *overrides)


def rendered() -> dict[str, str]:
    """Every template, filled in for LUMI; by file name."""
    cluster = lumi("cluster.container=/appl/local/containers/poro.sif").cluster
    folder = JobFolder(SCRATCH / "runs" / "poro_34b")
    with mock.patch.object(scripts, "checkout", return_value=None):
        texts = {
            "lumi_train.sbatch": scripts.training_script(
                cluster, folder, name="poro_34b-5d1f2a", nodes=128, working_folder=SCRATCH
            ),
            "lumi_export.sbatch": scripts.command_script(
                cluster, "export", "export runs/poro_34b --milestones", name="poro-export", working_folder=SCRATCH
            ),
            "lumi_publish.sbatch": scripts.command_script(
                cluster, "publish", "publish runs/poro_34b", name="poro-publish", working_folder=SCRATCH, after="123"
            ),
            "lumi_evaluate.sbatch": scripts.command_script(
                cluster, "evaluate", "generate runs/poro_34b 'Suomi on'", name="poro-evaluate", working_folder=SCRATCH
            ),
            "lumi_tokenize.sbatch": scripts.command_script(
                cluster,
                "tokenize",
                "data tokenize --input corpus/web.jsonl.zst --output data/web --tokenizer tokenizers/poro_34b",
                name="poro-tokenize",
                working_folder=SCRATCH,
                array=16,
            ),
        }
    return {name: text.replace(str(slurm_folder()), "/opt/megatron_poro/slurm") for name, text in texts.items()}


if __name__ == "__main__":
    for name, text in rendered().items():
        (GOLDEN / name).write_text(text, encoding="utf-8")
