"""Guards over configs: each rule that a config is held against is one, and is switched off whole."""

import inspect
from collections.abc import Callable
from typing import Any

from megatron_poro.config.fit_rules import FIT_RULES
from megatron_poro.config.value_rules import VALUE_RULES
from tests.guards_off.switch import Guard


def _of_rule(rule: Callable[..., Any]) -> Guard:
    first_line = (inspect.getdoc(rule) or "").partition("\n")[0]
    return Guard(
        name=rule.__name__.replace("_", " "),
        keeps=f"in a config: {first_line.rstrip('.')}",
        where=f"{rule.__module__}:{rule.__name__}",
        instead="yield from ()",
        missed_by=("unit/config/test_validate.py::test_a_rule_refuses_what_it_is_for",),
    )


_RULES: tuple[Callable[..., Any], ...] = (*VALUE_RULES, *FIT_RULES)

GUARDS = tuple(map(_of_rule, _RULES))
