import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_poro.cli.data_mixture import plan, show
from megatron_poro.config.identity import fingerprint
from megatron_poro.config.load import load_config
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.errors import ConfigError
from megatron_poro.tokenizer.bytes import byte_tokenizer

ROOT = Path(__file__).parents[3]
TEXTS = {"a": ["yksi metsä", "kaksi", "kolme järveä"], "b": ["one wood", "two", "three lakes and a fourth"]}

Overrides = list[str]


@pytest.fixture
def run(tmp_path: Path) -> Overrides:
    """A run of 4 steps of 4 samples of 16 tokens, half of a and half of b, with the bytes as its tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    for name, texts in TEXTS.items():
        with IndexedWriter(tmp_path / name, vocab_size=tokenizer.vocab_size) as writer:
            for text in texts:
                writer.append(tokenizer.encode(text))
    sources = ", ".join(f"{{name: {name}, path: {tmp_path / name}, weight: 0.5}}" for name in TEXTS)
    return [
        "experiment=smoke_cpu",
        f"data.train=[{sources}]",
        "data.validation=[]",
        "validation.every_steps=0",
        "export.every_tokens=0",
        f"data.index_cache={tmp_path / 'index'}",
        f"tokenizer.path={tmp_path / 'tokenizer'}",
        "data.sequence_length=16",
        "schedule.total_tokens=256",
        "schedule.global_batch_samples=4",
        "schedule.warmup_tokens=0",
        "schedule.decay_tokens=null",
        "parallel.tensor=1",
        "parallel.pipeline=1",
        "engine.microbatch_samples=1",
    ]


def printed(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert command(list(words)) == 0
    return capsys.readouterr().out


def test_plan_of_poro_34b_needs_no_files_and_corrects_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(plan, capsys, "experiment=poro_34b")
    (finnish,) = re.findall(r"^finnish .*", text, re.MULTILINE)
    assert finnish.split() == ["finnish", "13.0481", "%", "63,711,331", "130,480,805,888", "-", "-", "131,500,000,000"]
    assert re.search(
        r"^published +finnish: 131,500,000,000, 1,019,194,112 tokens \(0.10 % of the run\) more", text, re.M
    )
    assert re.search(r"^remark +finnish: the card's 131.5B should be 130.5B", text, re.M)
    assert re.search(
        r"^published +agrees .* slimpajama, tatoeba_en_fi, tatoeba_fi_en, starcoder, gutenberg$", text, re.M
    )
    assert "missing    finnish: data/poro_34b/train/merged_finnish.idx does not exist" in text
    assert "weights    sum to 1.00000000009" in text
    assert "238,418 steps, data for 488,281,250 samples of 2,048 tokens = 1,000,000,000,000" in text


def test_plan_says_how_often_each_source_is_read(run: Overrides, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(plan, capsys, *run)
    rows = [line.split() for line in text.splitlines()[1:3]]
    # 8 samples of 16 tokens each; letters with dots are two bytes
    sizes = [sum(len(byte_tokenizer().encode(document)) for document in texts) for texts in TEXTS.values()]
    expected = [
        [name, "50.0000", "%", "8", "128", str(size), f"{128 / size:.2f}", "-"]
        for name, size in zip(TEXTS, sizes, strict=True)
    ]
    assert rows == expected
    assert "missing" not in text
    assert "any number of a source" in text


def test_plan_is_printed_and_then_refused_beyond_the_stated_epochs(
    run: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_epochs=1\.5, but a would be read"):
        plan([*run, "data.max_epochs=1.5"])
    assert capsys.readouterr().out.startswith("source")


def test_limit_of_epochs_must_be_more_than_nothing(run: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_epochs=0 must be more than 0"):
        plan([*run, "data.max_epochs=0"])


def test_plan_runs_without_torch() -> None:
    program = (
        "import sys; from megatron_poro.cli.data_mixture import plan; "
        "plan(['experiment=poro_34b']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_show_prints_the_texts_that_the_step_was_made_of(run: Overrides, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(show, capsys, "--step", "2", *run)
    assert text.startswith("step 2: samples 4 to 7: 2 a, 2 b\n")
    assert re.findall(r"^sample (\d+): sample (\d+) of (\w)", text, re.MULTILINE) == [
        ("4", "2", "a"),
        ("5", "2", "b"),
        ("6", "3", "a"),
        ("7", "3", "b"),
    ]
    for name, texts in TEXTS.items():
        samples = re.findall(rf"^sample \d+: sample \d+ of {name}.*\n((?:  .*\n)+)", text, re.MULTILINE)
        for sample in samples:
            shown = [(int(number), part) for number, part in re.findall(r"document (\d+), (\w+)", sample)]
            quoted = re.findall(r": '(.*)'$", sample, re.MULTILINE)
            assert len(shown) == len(quoted) >= 1
            for (number, _), piece in zip(shown, quoted, strict=True):
                assert piece.replace("\N{REPLACEMENT CHARACTER}", "") in texts[number]


def test_pieces_of_a_sample_are_its_tokens_in_order(run: Overrides, capsys: pytest.CaptureFixture[str]) -> None:
    """16 tokens and one more for the last label, counted from the ranges that are printed."""
    text = printed(show, capsys, "--step", "1", *run)
    sizes = {name: [len(byte_tokenizer().encode(document)) for document in texts] for name, texts in TEXTS.items()}
    for name, sample in re.findall(r"^sample \d+: sample \d+ of (\w).*\n((?:  .*\n)+)", text, re.MULTILINE):
        tokens = 0
        for number, part in re.findall(r"document (\d+), (whole|tokens \d+ to \d+)", sample):
            first, last = re.findall(r"\d+", part) if part != "whole" else (0, sizes[name][int(number)] - 1)
            tokens += int(last) - int(first) + 1
        assert tokens == 17


def test_show_picks_a_source_and_says_what_it_left_out(run: Overrides, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(show, capsys, "--step", "2", "--source", "b", "--samples", "1", "--characters", "2", *run)
    assert re.findall(r"^sample (\d+)", text, re.MULTILINE) == ["5"]
    assert text.endswith("\n1 more; --samples 2 prints all.\n")
    assert all(len(piece) <= 2 for piece in re.findall(r": '(.*) \.\.\.'$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "0"], "--step 0 must be 1 to 4"),
        (["--step", "5"], "--step 5 must be 1 to 4"),
        (["--step", "1", "--source", "c"], "--source c is not in data.train, which has a, b"),
        (["--step", "1", "--samples", "0"], "--samples 0 must be at least 1"),
    ],
)
def test_what_show_cannot_show_is_named(run: Overrides, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        show([*words, *run])


def test_identity_of_a_run_has_neither_remarks_nor_limits(run: Overrides) -> None:
    """They may change between a checkpoint and its continuation."""
    assert fingerprint(load_config(run)) == fingerprint(load_config([*run, "data.max_epochs=9"]))


def test_mixture_file_is_planned_with_its_parts_of_datasets(
    run: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = tmp_path / "mixture.txt"
    mixture.write_text(
        f'"TRAIN: 0.75 0:0.67 {tmp_path / "a"}, 0.25 0:1 {tmp_path / "b"}" "V: 1 0.67:1 {tmp_path / "a"}"'
    )
    words = ["--weighted-paths", str(mixture), "--group", "TRAIN", *run]
    text = printed(plan, capsys, *words)
    rows = {line.split()[0]: line.split() for line in text.splitlines()[1:3]}
    of_two = sum(len(byte_tokenizer().encode(text)) for text in TEXTS["a"][:2])
    assert rows["a"][1] == "75.0000"
    assert rows["a"][5] == str(of_two)
    with pytest.raises(ConfigError, match=r"has the groups TRAIN, V; choose one with --group"):
        plan(["--weighted-paths", str(mixture), *run])
    with pytest.raises(ConfigError, match=r"--group X: .* has TRAIN, V"):
        plan(["--weighted-paths", str(mixture), "--group", "X", *run])
    with pytest.raises(ConfigError, match=r"about the file that --weighted-paths names"):
        plan(["--as-config", *run])


def test_mixture_file_becomes_a_config_that_runs(
    run: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = tmp_path / "mixture.txt"
    mixture.write_text(f'"TRAIN: 0.75 0:0.67 {tmp_path / "a"}, 0.25 0:1 {tmp_path / "b"}"')
    yaml = printed(plan, capsys, "--weighted-paths", str(mixture), "--as-config", *run)
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "mine.yaml").write_text(yaml)
    others = [word for word in run if not word.startswith("data.")]
    words = ["--config-dir", str(tmp_path / "configs"), *others, "data=mine"]
    table = printed(plan, capsys, *words)
    assert re.search(r"^a +75\.0000 %", table, re.MULTILINE)
    shown = printed(show, capsys, "--step", "1", "--source", "a", *words)
    assert "documents 0:0.67)" in shown
    assert "document 2" not in shown
    whole = load_config([*run, f"data.train=[{{name: a, path: {tmp_path / 'a'}, weight: 1}}]"])
    part = load_config([*run, f"data.train=[{{name: a, path: {tmp_path / 'a'}, weight: 1, end: 0.5}}]"])
    assert fingerprint(whole) != fingerprint(part)
