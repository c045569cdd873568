"""What is public says what it is."""

import ast
from collections.abc import Iterator

from tests.house.checkout import ROOT, own_files, package_modules, shown

Documentable = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def protocol_methods() -> set[str]:
    """Methods that a Protocol of the package documents once for all that implement it."""
    return {
        method.name
        for _, tree in package_modules()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Protocol" for b in node.bases)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }


def public(tree: ast.Module) -> Iterator[Documentable]:
    """Public classes and functions of a module and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, Documentable) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_"))


def test_every_public_name_has_a_docstring() -> None:
    known = protocol_methods() | {"forward", "backward"}
    missing = [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path, tree in package_modules()
        for node in public(tree)
        if not ast.get_docstring(node) and node.name not in known
    ]
    assert missing == []


def test_every_module_says_what_it_is() -> None:
    for path in own_files(".py"):
        if "tests" in path.parts:  # a test says it with its name
            continue
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), shown(path)


def test_every_config_field_says_what_it_means() -> None:
    """The docstring under a field is its documentation; ``null`` of what, counted in what."""
    for name in ("run", "model", "data"):
        tree = ast.parse((ROOT / "megatron_poro" / "config" / f"{name}.py").read_text(encoding="utf-8"))
        for section in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "TrainConfig"):
            for field, after in zip(section.body, [*section.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{name}.py:{field.lineno}: {ast.unparse(field.target)} of {section.name}"
