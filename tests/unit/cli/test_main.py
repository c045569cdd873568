"""``poro VERB``: the table, how it ends, and what it does not import."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_poro import __version__
from megatron_poro.cli import main as cli
from megatron_poro.errors import ConfigError, DataError


@pytest.fixture
def with_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Adds the verb ``probe``, which calls a function of the test."""
    monkeypatch.delenv("RANK", raising=False)

    def add(function: Callable[[list[str]], int]) -> None:
        module = types.ModuleType("probe_verb")
        module.main = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_verb", module)
        monkeypatch.setitem(cli.VERBS, "probe", cli.Verb("probe_verb:main", "for a test"))

    return add


def test_help_lists_every_verb_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(cli.VERBS) >= {"train", "generate", "tokenizer", "data", "export", "import", "ckpt", "config", "submit"}
    for name, verb in cli.VERBS.items():
        assert any(line.split() == [name, *verb.summary.split()] for line in lines)


def test_no_verb_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: poro VERB" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"megatron_poro {__version__}\n"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trian", "poro: trian is not a verb; did you mean `poro train`?\n"),
        (
            "xyz",
            f"poro: xyz is not a verb; use one of {', '.join(cli.VERBS)}.\n",
        ),
    ],
)
def test_an_unknown_verb_is_one_sentence(word: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", sentence)


def test_a_verb_gets_the_words_after_it_and_gives_the_status(
    with_verb: Callable[[Callable[[list[str]], int]], None],
) -> None:
    seen: list[list[str]] = []

    def probe(argv: list[str]) -> int:
        seen.append(argv)
        return 75

    with_verb(probe)
    assert cli.main(["probe", "a=1", "--help"]) == 75
    assert seen == [["a=1", "--help"]]


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def probe(argv: list[str]) -> int:
        raise error

    return probe


def test_an_error_of_the_input_is_its_sentence_and_status_2(
    with_verb: Callable[[Callable[[list[str]], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(raising(DataError("a.bin is missing; build it.")))
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "poro: a.bin is missing; build it.\n"


def test_several_problems_are_a_line_each(
    with_verb: Callable[[Callable[[list[str]], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(raising(ConfigError("one.\ntwo.")))
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err == "poro: one.\nporo: two.\n"


def test_another_rank_says_which_it_is(
    with_verb: Callable[[Callable[[list[str]], int]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_verb(raising(ConfigError("one.")))
    monkeypatch.setenv("RANK", "3")
    cli.main(["probe"])
    assert capsys.readouterr().err == "poro (rank 3): one.\n"


def test_a_bug_keeps_its_traceback(with_verb: Callable[[Callable[[list[str]], int]], None]) -> None:
    with_verb(raising(KeyError("bug")))
    with pytest.raises(KeyError, match="bug"):
        cli.main(["probe"])


def test_an_interrupt_is_not_a_traceback(
    with_verb: Callable[[Callable[[list[str]], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "poro: interrupted.\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m megatron_poro.cli.main config reference | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "# Configuration\n", "")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_of_the_table_exists(verb: str) -> None:
    module, _, function = cli.VERBS[verb].target.partition(":")
    path = Path(cli.__file__).parent / f"{module.rpartition('.')[2]}.py"
    assert f"\ndef {function}(" in path.read_text(encoding="utf-8")


def test_help_and_a_mistyped_verb_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from megatron_poro.cli.main import main\n"
        "main(['--help']); main(['trian'])\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'hydra', 'omegaconf', 'numpy', 'argparse'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
