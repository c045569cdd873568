"""The card says what the run did, and the Hub accepts it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from megatron_poro.checkpoint.export_report import read_report
from megatron_poro.config.load import load_config
from megatron_poro.errors import ConfigError
from megatron_poro.hub import card as card_module
from megatron_poro.hub.card import SECTIONS, Subject, render
from megatron_poro.hub.card_tables import datasets, hyperparameters, markdown, short
from megatron_poro.hub.details import CardDetails, DatasetDetails, SectionDetails, read_details
from megatron_poro.hub.facts import Consumption, MilestoneFacts, RunFacts, read_run
from megatron_poro.hub.seal import may_replace, sealed
from tests.unit.hub.run_folder import MILESTONES, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def card(run: Path, label: str = "4k", details: CardDetails | None = None, listed: list[str] | None = None) -> str:
    facts = read_run(run, {})
    report = read_report(run / "exports" / label)
    names = list(MILESTONES)
    known = listed or names[: names.index(label) + 1]
    return render(Subject("poro/tiny", facts, details or read_details(None), label, report, known))


def section(text: str, title: str) -> str:
    assert f"\n## {title}\n" in text, f"no section {title} in\n{text}"
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line[:1] == "|"]


def test_the_head_is_what_the_hub_reads(run: Path) -> None:
    details = CardDetails(
        license="apache-2.0", languages=["fi", "no"], tags=["finnish"], hub_datasets=["cerebras/SlimPajama-627B", "mc4"]
    )
    data: Any = ModelCard(card(run, details=details)).data
    assert data.to_dict() == {
        "language": ["fi", "no"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["finnish", "bloom", "megatron_poro"],
        "datasets": ["cerebras/SlimPajama-627B", "mc4"],
    }


def test_a_section_without_facts_is_left_out_with_its_heading(run: Path) -> None:
    text = card(run, details=CardDetails())
    assert "## Evaluation" not in text
    assert "## Licence and contact" not in text
    assert "## Intended use" not in text
    assert "\n\n\n" not in text
    assert "$" not in text


def test_the_prose_that_suits_any_base_model_is_there_by_default(run: Path) -> None:
    text = card(run)
    assert "has not been tuned to follow instructions" in section(text, "Intended use")
    assert "prejudices" in section(text, "Limitations")


def test_the_architecture_is_that_of_the_run(run: Path) -> None:
    found = dict(rows(section(card(run), "Model overview"))[2:])
    assert found["parameters"] == "34.22B (34,216,949,760)"
    assert (found["layers"], found["hidden size"], found["feed-forward size"]) == ("2", "8", "32")
    assert (found["vocabulary"], found["sequence length"], found["weights"]) == ("20", "16", "bfloat16")


def test_the_branches_up_to_the_milestone_are_listed_with_what_they_had_seen(run: Path) -> None:
    table = rows(section(card(run, "4k"), "Checkpoints"))
    assert table[2:] == [
        ["[2k](https://huggingface.co/poro/tiny/tree/2k)", "31", "1,984", "4.6900", "5.2000"],
        ["[4k](https://huggingface.co/poro/tiny/tree/4k)", "62", "3,968", "4.3800", "4.9000"],
    ]


def test_a_card_does_not_change_when_the_run_goes_on(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:62]))
    early = card(run, "4k")
    (run / "metrics.jsonl").write_text("".join(lines) + '{"train/step": 101, "tra')
    assert card(run, "4k") == early


def test_the_dataset_table_counts_what_was_read(run: Path) -> None:
    text = section(card(run, "4k"), "Dataset")
    assert "3.968k tokens in all" in text
    assert rows(text)[2:] == [["one", "", "100.00%", "3.97", "3.968k"]]


def test_rows_of_the_dataset_table_add_up_sources() -> None:
    consumption = [Consumption("en_fi", 300, 1.5), Consumption("fi_en", 100, 1.0), Consumption("web|x", 600, None)]
    table = datasets(consumption, [DatasetDetails(sources=["en_fi", "fi_en"], title="Pairs", notes="n", url="u")])
    assert table.splitlines()[2:] == [
        "| [Pairs](u) | n | 40.00% | 1.33 | 400 |",  # 400 tokens of sources with 200 + 100
        "| web\\|x |  | 60.00% |  | 600 |",
    ]


def test_layout_and_speed_are_told(run: Path) -> None:
    found = dict(rows(section(card(run, "4k"), "Training"))[2:])
    assert found["layout"] == "4 processes: tensor 2 x pipeline 1 x data 2"
    assert found["microbatch"] == "1 x 2 accumulation steps"
    assert found["throughput"] == "1,032 tokens/s (median)"  # steps 1 to 62: the half between 1031 and 1032
    assert found["per device"] == "80 TFLOP/s, 40.0% of its peak"


def test_the_hyperparameters_of_poro_are_those_it_was_published_with() -> None:
    config = load_config(["experiment=poro_34b", "data.folder=d", "tokenizer.path=t"])
    found = {row[0]: row[1:] for row in rows(hyperparameters(config))[2:]}
    assert found["precision"][0] == "bf16"
    assert found["learning rate"] == ["0.00015", "10B tokens of warm-up, then cosine to 2e-05 at 1T tokens"]
    assert found["weight decay"][0] == "0.1"
    assert found["batch size"] == ["2,048", "2,048 samples x 2,048 tokens = 4,194,304 tokens"]


def test_a_card_of_an_unfinished_run_says_so(run: Path) -> None:
    assert "It has seen 3.968k of 6.4k tokens (62%)" in card(run, "4k")
    assert "unfinished" not in card(run, "6400")


def test_results_of_all_listed_milestones_stand_side_by_side(run: Path) -> None:
    (run / "evaluations").mkdir()
    for label, value in (("2k", 12.5), ("4k", 50.25)):
        entries = [{"benchmark": "FIN-bench", "metric": "accuracy", "value": value, "shots": 3}]
        if label == "4k":
            entries.append({"benchmark": "HumanEval", "metric": "pass@10", "value": 0})
        (run / "evaluations" / f"{label}.json").write_text(json.dumps({"results": entries}))
    assert rows(section(card(run, "6k"), "Evaluation")) == [
        ["benchmark", "metric", "shots", "2k", "4k"],
        ["---"] * 5,
        ["FIN-bench", "accuracy", "3", "12.5", "50.25"],
        ["HumanEval", "pass@10", "", "", "0"],
    ]
    assert "50.25" not in card(run, "2k")


def test_further_sections_and_people_are_told(run: Path) -> None:
    details = CardDetails(
        license="other",
        license_name="Own licence",
        license_link="https://example.org/l",
        developed_by="us",
        contact="us@example.org",
        hardware="A machine.",
        sections=[SectionDetails(title="Thanks", text="To all.")],
    )
    text = card(run, details=details)
    assert section(text, "Thanks").strip() == "To all."
    ending = section(text, "Licence and contact")
    assert "Licence: [Own licence](https://example.org/l).\n\nDeveloped by us.\n\nContact: us@example.org." in ending
    assert "A machine." in section(text, "Training")


def test_a_template_may_be_ones_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("$front_matter\n# $title costs 5 $$\n\n$checkpoints\n")
    (tmp_path / "mine.yaml").write_text("title: Tiny\ntemplate: mine.md\n")
    text = card(run, details=read_details(str(tmp_path / "mine.yaml")))
    assert "# Tiny costs 5 $\n\n## Checkpoints\n" in text
    assert "## Training" not in text


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("$front_matter $speed", r"asks for \$speed; there is checkpoints, dataset, .* and training"),
        ("$front_matter 5 $", r"write a dollar sign as \$\$"),
        ("# $title", r"must begin with \$front_matter"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_template_is_refused(run: Path, tmp_path: Path, template: str | None, complaint: str) -> None:
    path = tmp_path / "t.md"
    if template is not None:
        path.write_text(template)
    with pytest.raises(ConfigError, match=complaint):
        card(run, details=CardDetails(template=str(path)))


def test_the_packaged_template_uses_every_section() -> None:
    text = Path(card_module.__file__).with_name("card_template.md").read_text()
    assert set(re.findall(r"\$(\w+)", text)) == SECTIONS.keys()


def test_a_card_knows_whether_it_was_changed(run: Path) -> None:
    text = card(run)
    assert may_replace(text)
    assert not may_replace(text.replace("## Training", "## How it was trained"))
    assert not may_replace(text + "\nMine.\n")
    assert not may_replace("# Mine\n")
    assert may_replace("")
    assert may_replace(sealed("x"))


@pytest.mark.parametrize(
    ("number", "text"),
    [(34_216_949_760, "34.22B"), (10**12, "1T"), (541_671_234_567, "541.7B"), (999, "999"), (0, "0")],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert short(number) == text


def test_cells_cannot_break_a_table() -> None:
    assert markdown(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


def poro_facts() -> RunFacts:
    """The finished run as its metrics would tell it: the weights of the mixture, and the published epochs."""
    config = load_config(["experiment=poro_34b", "data.folder=d", "tokenizer.path=t"])
    tokens = 238_418 * 4_194_304
    epochs = {"slimpajama": 1.0, "finnish": 4.0, "tatoeba_en_fi": 1.0, "tatoeba_fi_en": 1.0, "starcoder": 1.52}
    consumption = [
        Consumption(source.name, round(tokens * source.weight), epochs.get(source.name, 1.0))
        for source in config.data.train
    ]
    labels = [f"{n}00B" for n in range(1, 11)]
    milestones = {
        label: MilestoneFacts(label, (n + 1) * 23_841, (n + 1) * 23_841 * 4_194_304, consumption)
        for n, label in enumerate(labels)
    }
    milestones["1000B"] = replace(milestones["1000B"], step=238_418, tokens=tokens)
    return RunFacts(config, 238_418, milestones)


def test_the_card_of_poro_34b_tells_what_the_released_one_tells() -> None:
    facts = poro_facts()
    report = {
        "checkpoint": {
            "step": 238_418,
            "consumed_tokens": 238_418 * 4_194_304,
            "created": "2024-01-01T00:00:00+00:00",
            "layout": {"tensor": 2, "pipeline": 4, "data": 128},
            "versions": {"torch": "2.13.0"},
        },
        "model": {"dtype": "bfloat16", "parameters": 34_216_949_760},
        "tokenizer_fingerprint": "ab" * 32,
        "parity": None,
    }
    text = render(
        Subject("LumiOpen/Poro-34B", facts, read_details("poro_34b"), "1000B", report, list(facts.milestones))
    )
    overview = dict(rows(section(text, "Model overview"))[2:])
    assert overview["parameters"].startswith("34.22B")
    assert (overview["layers"], overview["attention heads"], overview["hidden size"]) == ("54", "56", "7,168")
    assert (overview["vocabulary"], overview["sequence length"]) == ("128,000", "2,048")
    assert "1,024 processes: tensor 2 x pipeline 4 x data 128" in section(text, "Training")
    assert "1 x 16 accumulation steps" in section(text, "Training")
    branches = [row[0] for row in rows(section(text, "Checkpoints"))[2:]]
    assert branches[0] == "[100B](https://huggingface.co/LumiOpen/Poro-34B/tree/100B)"
    assert len(branches) == 10
    table = {row[0].strip("[").split("]")[0]: row[2:] for row in rows(section(text, "Dataset"))[2:]}
    assert table == {
        "SlimPajama": ["54.16%", "1.00", "541.6B"],
        "Finnish": ["13.05%", "4.00", "130.5B"],
        "Tatoeba": ["0.80%", "1.00", "8.04B"],
        "StarCoder": ["31.54%", "1.52", "315.4B"],
        "Project Gutenberg": ["0.45%", "1.00", "4.544B"],
    }
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["language"]) == ("apache-2.0", ["fi", "en"])
