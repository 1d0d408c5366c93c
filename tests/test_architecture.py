"""Which module may import which, as CONTRIBUTING.md says, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxsparse", "experiments", "benchmarks")
# From the bottom layer up: a module may import from its own row or from rows above it in this list.
LAYERS = (
    ("errors", "_tree", "checks", "clipping", "draws", "machine", "precision", "straight_through"),
    ("user_cache", "metrics", "_stored_batches", "_sparsity", "_classifier"),
    ("_gate", "losses", "nn", "data"),
    ("gates", "inner", "_first_layer", "learner"),
    ("updates",),
    ("maml", "lamaml", "cmaml"),
    ("continual", "learners"),
)


def sources():
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def only_for_types(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def nodes(tree):
    """All nodes of a module except those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not only_for_types(node):
            yield node
            yield from nodes(node)


def imports(tree, known):
    """Our modules that a module imports, anywhere in it."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inside)


@pytest.fixture(scope="module")
def graph():
    paths = {module_name(path): path for path in sources()}
    return {
        name: sorted(set(imports(ast.parse(path.read_text()), paths)) - {name})
        for name, path in paths.items()
    }


def circle(graph):
    """Modules that import one another in a cycle; [] if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for other in graph[name]:
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    for name in graph:
        if found := visit(name):
            return found
    return []


def layer(name):
    """The layer of a module."""
    package, _, rest = name.partition(".")
    if package != "jaxsparse":
        return len(LAYERS) + 2 + PACKAGES.index(package)
    if not rest:
        return len(LAYERS)
    top = rest.split(".")[0]
    if top == "training":
        return len(LAYERS) + 1
    (height,) = [i for i, names in enumerate(LAYERS) if top in names]
    return height


def test_no_import_cycles(graph):
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]
    assert circle(graph) == []


def test_no_import_upwards(graph):
    upward = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if layer(other) > layer(name)
    ]
    assert upward == []


def test_families_do_not_import_one_another(graph):
    families = [f"jaxsparse.training.{name}" for name in ("fewshot", "continual", "online")]
    steps = [f"jaxsparse.{name}" for name in ("maml", "lamaml", "cmaml")]
    for name, others in graph.items():
        for group in (families, steps):
            own = [family for family in group if name.startswith(family)]
            theirs = [other for other in others if any(map(other.startswith, group))]
            if own:
                assert all(other.startswith(own[0]) for other in theirs), name


def test_files_are_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources()
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
