"""Single commands as jobs: an array that tokenises a corpus, and the job that joins its parts. On a real Slurm."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from megatron_poro.cli.data import main
from tests.integration.toy import ToyCorpora
from tests.slurm.chained_run import ChainedRun

CPU_NODE = {"partition": "small", "walltime": "00:30:00", "cpus_per_task": 2}


def test_corpus_that_an_array_of_jobs_tokenises_is_that_of_one_process(
    chained: Callable[..., ChainedRun], corpora: ToyCorpora, tmp_path: Path
) -> None:
    run = chained(cluster={"tokenize": CPU_NODE})
    run.write_cluster()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"Asiakirja {number} on tässä."}) + "\n" for number in range(500)))
    tokenize = ["tokenize", "--input", str(corpus), "--tokenizer", str(corpora.folder / "tokenizer"), "--workers", "1"]

    submit = ("submit", *run.on_cluster, "--job", "tokenize")
    said = run.poro(*submit, "--array", "3", "--", "data", *tokenize, "--output", "data/web")
    (job,) = re.findall(r"submitted  job (\d+)", said)
    run.poro(*submit, "--after", job, "--", "data", "merge", "--shards", "--output", "data/web")
    run.wait_until_done()

    assert main([*tokenize, "--output", str(tmp_path / "whole" / "web")]) == 0
    made, whole = tmp_path / "data", tmp_path / "whole"
    assert sorted(path.name for path in whole.iterdir()) == ["web.bin", "web.idx", "web.manifest.json", "web.meta.json"]
    for path in whole.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes(), path.name
