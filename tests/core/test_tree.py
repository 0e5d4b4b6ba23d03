"""Tree: what is shared, both notations, files, drawings."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conal_rl.core.tree import Tree
from conal_rl.errors import TreeError
from tests.helpers.strategies import trees

MT10 = [
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
]


def mt10_tree() -> Tree:
    return Tree.from_branch_points([3, 4, 4, 1, 4, 2, 4, 1, 3, 4], 3, MT10)


def mt50_tree() -> Tree:
    """50 tasks, 4 layers: a group of 26 that splits, 12 pairs."""
    names = [f"a-rather-long-task-name-{i}-v3" for i in range(50)]
    big, pairs = names[:26], [names[i : i + 2] for i in range(26, 50, 2)]
    halves = [big[:20], big[20:]]
    single = [[name] for name in names[20:]]
    return Tree.from_groups(
        names, [[names], [big, *pairs], [*halves, *pairs], [big[:15], big[15:20], *single]]
    )


def names(error: Exception, field: str, got: str) -> bool:
    """Whether the error is about this field and this value."""
    return str(error).startswith(f"{field}: got ") and got in str(error)


# Structure


def test_properties_of_a_tree_equal_those_by_hand() -> None:
    tree = Tree.from_groups(
        ["a", "b", "c", "d"], [[["d", "a"], ["c", "b"]], [["b"], ["a", "d"], ["c"]]]
    )
    assert tree.layers == ((0, 1, 1, 0), (0, 1, 2, 0))
    assert (tree.depth, tree.num_tasks, tree.modules) == (2, 4, (2, 3))
    assert tree.groups(0) == (("a", "d"), ("b", "c"))
    assert tree.groups(1) == tree.groups(-1) == (("a", "d"), ("b",), ("c",))
    assert tree.parents(0) == (0, 0)
    assert tree.parents(1) == tree.parents(-1) == (0, 1, 1)
    assert tree.branch_points() == (3, 2, 2, 3)
    with pytest.raises(IndexError):
        tree.parents(2)


def test_branch_points_equal_those_by_hand() -> None:
    tree = Tree.from_branch_points({"a": 4, "b": 1, "c": 3, "d": 4}, depth=3)
    assert tree.tasks == ("a", "b", "c", "d")
    assert tree.layers == ((0, 1, 0, 0), (0, 1, 0, 0), (0, 1, 2, 0))
    assert tree.branch_points() == (4, 1, 3, 4)
    assert Tree.from_branch_points({"a": 4, "b": 1}, 3, tasks=["b", "a"]).tasks == ("b", "a")


def test_shared_and_independent_are_hps_and_stl() -> None:
    assert Tree.shared("abc", 2).layers == ((0, 0, 0), (0, 0, 0))
    assert Tree.shared("abc", 2).branch_points() == (3, 3, 3)
    assert Tree.independent("abc", 2).layers == ((0, 1, 2), (0, 1, 2))
    assert Tree.independent("abc", 2).branch_points() == (1, 1, 1)
    assert Tree.shared(["only"], 2) == Tree.independent(["only"], 2)
    assert Tree.shared(["only"], 2).branch_points() == (1,)


@given(st.data())
def test_branch_points_follow_the_definition(data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 5))
    points = data.draw(st.lists(st.integers(1, depth + 1), min_size=1, max_size=6))
    tree = Tree.from_branch_points(points, depth)
    for layer in range(1, depth + 1):
        for i, j in combinations(range(len(points)), 2):
            both_on_trunk = layer < points[i] and layer < points[j]
            assert (tree.layers[layer - 1][i] == tree.layers[layer - 1][j]) == both_on_trunk
    second = sorted(points)[-2] if len(points) > 1 else 1
    assert tree.branch_points() == tuple(min(point, second) for point in points)
    assert Tree.from_branch_points(tree.branch_points(), depth) == tree


@given(trees())
def test_groups_and_parents_agree_with_layers(tree: Tree) -> None:
    for p, layer in enumerate(tree.layers):
        groups, parents = tree.groups(p), tree.parents(p)
        assert len(groups) == len(parents) == tree.modules[p] == len(set(layer))
        assert sorted(name for group in groups for name in group) == sorted(tree.tasks)
        for name, module in zip(tree.tasks, layer):
            assert name in groups[module]
        for group, parent in zip(groups, parents):
            assert p == 0 or set(group) <= set(tree.groups(p - 1)[parent])
    assert Tree.from_groups(tree.tasks, [tree.groups(p) for p in range(tree.depth)]) == tree


@given(trees(), st.integers(1, 3))
def test_replicate_makes_disjoint_copies(tree: Tree, copies: int) -> None:
    forest = tree.replicate(copies)
    if copies == 1:
        assert forest is tree
        return
    assert forest.modules == tuple(copies * n for n in tree.modules)
    m = tree.num_tasks
    for copy in range(copies):
        rows = slice(copy * m, (copy + 1) * m)
        assert forest.tasks[rows] == tuple(f"{name}#{copy + 1}" for name in tree.tasks)
        for layer, original, n in zip(forest.layers, tree.layers, tree.modules):
            assert layer[rows] == tuple(copy * n + module for module in original)


@given(trees(min_tasks=2), st.data())
def test_rejoining_is_rejected(tree: Tree, data: st.DataObject) -> None:
    apart = [
        (p, i, j)
        for p, layer in enumerate(tree.layers)
        for i, j in combinations(range(tree.num_tasks), 2)
        if layer[i] != layer[j]
    ]
    if not apart:
        return
    p, i, j = data.draw(st.sampled_from(apart))
    joined = [tree.layers[p][i] if m == tree.layers[p][j] else m for m in tree.layers[p]]
    with pytest.raises(TreeError, match=rf"^layer {p + 2}: got .*'task-\d' and 'task-\d'"):
        Tree.from_labels(tree.tasks, [*tree.layers[: p + 1], joined])


@pytest.mark.parametrize(
    "tasks, layers, field, got",
    [
        ((), ((),), "tasks", ""),
        (("a",), (), "layers", ""),
        (("a", "a"), ((0, 0),), "tasks", "'a'"),
        (("a", ""), ((0, 0),), "tasks", "''"),
        (("a", "b\n"), ((0, 0),), "tasks", r"'b\n'"),
        (("a", "b"), ((0, 0), (0,)), "layer 2", "1 task"),
        (("a", "b"), ((1, 0),), "layer 1", "(1, 0)"),
        (("a", "b"), ((0, 2),), "layer 1", "(0, 2)"),
        (("a", "b", "c"), ((0, 0, 0), (0, 1, 2), (0, 1, 1)), "layer 3", "'b' and 'c'"),
    ],
)
def test_invalid_trees_are_refused(tasks: Any, layers: Any, field: str, got: str) -> None:
    with pytest.raises(TreeError) as error:
        Tree(tasks, layers)
    assert names(error.value, field, got)


@pytest.mark.parametrize(
    "points, tasks, field, got",
    [
        ([1, 0], None, "points", "0 for 'task-1'"),
        ([1, 4], "ab", "points", "4 for 'b'"),
        ([1, 2], "abc", "points", "2"),
        ({"a": 1}, "ab", "points", "'b'"),
        ([1.5, 2], None, "points", "float"),
        ([], None, "tasks", ""),
    ],
)
def test_invalid_branch_points_are_refused(points: Any, tasks: Any, field: str, got: str) -> None:
    with pytest.raises(TreeError) as error:
        Tree.from_branch_points(points, 2, tasks)
    assert names(error.value, field, got)


def test_check_reorders() -> None:
    tree = Tree.from_branch_points({"a": 1, "b": 3, "c": 3}, 2)
    assert tree.check(["a", "b", "c"], 2) == tree
    assert tree.check(["c", "a", "b"], 2) == Tree.from_branch_points({"c": 3, "a": 1, "b": 3}, 2)


@pytest.mark.parametrize(
    "tasks, depth, field, got",
    [
        ("abc", 2, "tasks", "no 'c'"),
        ("a", 2, "tasks", "'b'"),
        ("aba", 2, "tasks", "'a'"),
        ("ab", 3, "layers", "2"),
    ],
)
def test_check_rejects(tasks: str, depth: int, field: str, got: str) -> None:
    with pytest.raises(TreeError) as error:
        Tree.shared("ab", 2).check(tasks, depth)
    assert names(error.value, field, got)


# Files


def test_json_is_stable_and_readable() -> None:
    tree = Tree.from_groups(["a", "b", "c"], [[["a", "b", "c"]], [["b"], ["c", "a"]]])
    assert tree.to_json() == (
        "{\n"
        '  "format": "conal_rl.tree",\n'
        '  "version": 1,\n'
        '  "tasks": ["a", "b", "c"],\n'
        '  "layers": [\n'
        '    [["a", "b", "c"]],\n'
        '    [["a", "c"], ["b"]]\n'
        "  ]\n"
        "}\n"
    )


@given(trees())
def test_a_tree_survives_json(tree: Tree) -> None:
    assert Tree.from_json(tree.to_json()) == tree


def test_names_need_escaping() -> None:
    tree = Tree.shared(['say "hi"', "back\\slash", "Tür auf"], 1)
    assert Tree.from_json(tree.to_json()) == tree


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    Tree.shared(MT10, 3).save(path)
    mt10_tree().save(str(path))
    assert Tree.load(path) == mt10_tree()
    assert list(tmp_path.iterdir()) == [path]


def test_failed_save_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree.json").mkdir()
    with pytest.raises(OSError):
        mt10_tree().save(tmp_path / "tree.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tree.json"]


GOOD = {"format": "conal_rl.tree", "version": 1, "tasks": ["a", "b"], "layers": [[["a", "b"]]]}


@pytest.mark.parametrize(
    "change, field, got",
    [
        ({"format": "other"}, "format", "'other'"),
        ({"version": 2}, "version", "2"),
        ({"version": None}, "version", "None"),
        ({"tasks": "ab"}, "tasks", "'ab'"),
        ({"tasks": []}, "tasks", ""),
        ({"tasks": ["a", "a"]}, "tasks", "'a'"),
        ({"layers": [["a", "b"]]}, "layers", "[['a', 'b']]"),
        ({"layers": []}, "layers", ""),
        ({"layers": [[["a"], ["b", "c"]]]}, "layer 1", "'c'"),
        ({"layers": [[["a", "b"]], [["a"]]]}, "layer 2", "no 'b'"),
        ({"layers": [[["a", "b"], ["a"]]]}, "layer 1", "'a' twice"),
        ({"layers": [[["a"], ["b"]], [["a", "b"]]]}, "layer 2", "'a' and 'b'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, change: dict[str, Any], field: str, got: str) -> None:
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(TreeError) as error:
        Tree.load(path)
    assert names(error.value, f"{path}: {field}", got)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[" * 100_000, b"[]", b"\xff\xfe"], ids=lambda c: repr(c)[:9]
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tree.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TreeError) as error:
        Tree.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


# Drawings


def test_text_of_ten_tasks_equals_one_by_hand() -> None:
    assert str(mt10_tree()) == (
        "10 tasks, 3 layers, 13 modules\n"
        "├─ layer 1 shared by 8 tasks\n"
        "│  ├─ layer 2 shared by 7 tasks\n"
        "│  │  ├─ layer 3 shared by push, pick-place, drawer-open, button-press-topdown,"
        " window-close\n"
        "│  │  └─ layer 3 separate: reach, window-open\n"
        "│  └─ layers 2-3 separate: drawer-close\n"
        "└─ layers 1-3 separate: door-open, peg-insert-side"
    )


def test_text_of_one_task_equals_one_by_hand() -> None:
    assert str(Tree.shared(["a"], 1)) == "1 task, 1 layer, 1 module\n└─ layer 1 separate: a"


def test_text_wraps_and_merges_runs() -> None:
    lines = str(Tree.shared([f"task-number-{i}" for i in range(50)], 3)).splitlines()
    assert lines[0] == "50 tasks, 3 layers, 3 modules"
    assert lines[1].startswith("└─ layers 1-3 shared by task-number-0, task-number-1, ")
    assert all(line.startswith("      task-number-") for line in lines[2:])
    assert 80 < max(map(len, lines)) <= 100


@given(trees())
def test_text_names_every_task_once(tree: Tree) -> None:
    text = str(tree)
    assert [text.count(name) for name in tree.tasks] == [1] * tree.num_tasks


def check_drawing(tree: Tree, ax: Any) -> None:
    """One node per module, one edge per feeding module and per head; no overlaps."""
    assert len(ax.collections) == sum(tree.modules)
    feeding = [set(zip(above, layer)) for above, layer in zip(tree.layers, tree.layers[1:])]
    assert len(ax.patches) == sum(map(len, feeding)) + tree.num_tasks
    texts = [text.get_text() for text in ax.texts]
    assert set(tree.tasks) <= set(texts)
    shared = [str(n) for layer in tree.layers for n in map(layer.count, set(layer)) if n > 1]
    assert sorted(texts) == sorted([*tree.tasks, *shared])

    figure = ax.figure
    figure.draw_without_rendering()
    titles = [text for text in (ax.title, ax._left_title) if text.get_text()]
    labels = [*ax.texts, *ax.get_xticklabels(), *titles, ax.get_legend()]
    boxes = [(label, label.get_window_extent()) for label in labels]
    for label, box in boxes:
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1), label
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1), label
    for (one, box), (other, other_box) in combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)

    # Nodes are discs: compare their centres, in pixels, with their diameters.
    discs = []
    for node in ax.collections:
        centre = node.get_offset_transform().transform(node.get_offsets())[0]
        discs.append((centre, node.get_sizes()[0] ** 0.5 * figure.dpi / 72))
    for (one, width), (other, other_width) in combinations(discs, 2):
        distance = ((one - other) ** 2).sum() ** 0.5
        assert distance >= (width + other_width) / 2


@pytest.mark.parametrize(
    "tree",
    [
        mt10_tree(),
        mt50_tree(),
        Tree.shared(MT10, 12),
        Tree.independent([f"$task_{i}$" for i in range(50)], 3),
        Tree.shared(["a"], 1),
    ],
    ids=["mt10", "mt50", "shared", "independent", "one"],
)
def test_drawing_fits_its_figure(tree: Tree) -> None:
    check_drawing(tree, tree.draw(title="A title"))


def test_drawing_uses_the_given_axes() -> None:
    from matplotlib.figure import Figure

    left, right = Figure(figsize=(9, 6)).subplots(1, 2)
    assert mt10_tree().draw(left, title="actor") is left
    assert mt50_tree().draw(right) is right
    check_drawing(mt10_tree(), left)
    check_drawing(mt50_tree(), right)


@settings(max_examples=10, deadline=None)
@given(trees(max_tasks=12, max_depth=6))
@pytest.mark.slow
def test_drawing_of_any_tree_fits_its_figure(tree: Tree) -> None:
    check_drawing(tree, tree.draw())


@pytest.mark.slow
def test_matplotlib_is_imported_only_to_draw() -> None:
    code = (
        "import sys; from conal_rl.core.tree import Tree; str(Tree.shared('ab', 1));"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Where tasks meet again, as Recon's do


@st.composite
def rejoining(draw: st.DrawFn, max_tasks: int = 5) -> Tree:
    """Any groups of tasks in any layer, two of which part and meet again."""
    num_tasks = draw(st.integers(2, max_tasks))
    layer = st.lists(st.integers(0, 2), min_size=num_tasks, max_size=num_tasks)
    layers = draw(st.lists(layer, min_size=2, max_size=5))
    tree = Tree.from_labels([f"task-{i}" for i in range(num_tasks)], layers, may_rejoin=True)
    assume(tree.rejoining)
    return tree


HOURGLASS = Tree.from_groups(
    ["a", "b", "c"],
    [[["a", "b", "c"]], [["a"], ["b"], ["c"]], [["a", "c"], ["b"]], [["a", "b", "c"]]],
    may_rejoin=True,
)


def test_tasks_meet_again_only_in_rejoining_trees() -> None:
    assert HOURGLASS.layers == ((0, 0, 0), (0, 1, 2), (0, 1, 0), (0, 0, 0))
    assert HOURGLASS.modules == (1, 3, 2, 1)
    apart = r"^layer 3: got .*'a' and 'c'"
    with pytest.raises(TreeError, match=apart):
        Tree(HOURGLASS.tasks, HOURGLASS.layers)
    with pytest.raises(TreeError, match=apart):
        Tree.from_labels(HOURGLASS.tasks, HOURGLASS.layers)
    with pytest.raises(TreeError, match=apart):
        Tree.from_groups(HOURGLASS.tasks, map(HOURGLASS.groups, range(4)))


def test_modules_of_rejoining_tasks_have_no_single_parent() -> None:
    for layer in range(4):
        with pytest.raises(TreeError, match=r"^rejoining: "):
            HOURGLASS.parents(layer)


@given(rejoining(), st.integers(1, 3), st.randoms())
def test_copies_files_and_orders_keep_rejoining_tasks(tree: Tree, copies: int, random: Any) -> None:
    assert Tree.from_json(tree.to_json()) == tree
    forest = tree.replicate(copies)
    assert forest.rejoining and forest.modules == tuple(copies * n for n in tree.modules)
    names = list(tree.tasks)
    random.shuffle(names)
    other = tree.check(names, tree.depth)
    assert (other.rejoining, other.tasks) == (True, tuple(names))
    for layer in range(tree.depth):
        assert {*map(frozenset, other.groups(layer))} == {*map(frozenset, tree.groups(layer))}
    assert other.check(tree.tasks, tree.depth) == tree


def test_a_plain_tree_is_refused_as_rejoining() -> None:
    tree = mt10_tree()
    assert Tree.from_labels(tree.tasks, tree.layers, may_rejoin=True) == tree
    with pytest.raises(TreeError, match=r"^rejoining: "):
        Tree(tree.tasks, tree.layers, rejoining=True)


def test_a_file_says_that_tasks_rejoin() -> None:
    text = HOURGLASS.to_json()
    assert json.loads(text)["rejoining"] is True
    assert "rejoining" not in json.loads(mt10_tree().to_json())
    with pytest.raises(TreeError, match=r"^layer 3: got .*'a' and 'c'"):
        Tree.from_json(text.replace('  "rejoining": true,\n', ""))


def test_text_of_rejoining_tasks_is_a_line_for_each_layer() -> None:
    assert str(HOURGLASS) == (
        "3 tasks, 4 layers, 7 modules\n"
        "layer 1: shared by a, b, c\n"
        "layer 2: separate: a, b, c\n"
        "layer 3: shared by a, c; separate: b\n"
        "layer 4: shared by a, b, c"
    )


def test_text_of_rejoining_tasks_wraps() -> None:
    layers = [[0] * 10, range(10), [0] * 10]
    lines = str(Tree.from_labels(MT10, layers, may_rejoin=True)).splitlines()
    assert [line[:8] for line in lines[1::2]] == ["layer 1:", "layer 2:", "layer 3:"]
    assert all(line.startswith("      ") for line in lines[2::2])
    assert 80 < max(map(len, lines)) <= 100


@given(rejoining())
def test_text_names_every_task_once_in_every_layer(tree: Tree) -> None:
    layers = str(tree).splitlines()[1:]
    assert len(layers) == tree.depth
    for number, line in enumerate(layers, start=1):
        assert line.startswith(f"layer {number}: ")
        assert [line.count(name) for name in tree.tasks] == [1] * tree.num_tasks


def test_drawing_of_rejoining_tasks_fits_its_figure() -> None:
    own, shared = range(10), [0] * 10
    for layers in ([shared, own, shared], [own, shared, own], [own, own, shared]):
        check_drawing(tree := Tree.from_labels(MT10, layers, may_rejoin=True), tree.draw(title="T"))
    HOURGLASS.draw().figure.draw_without_rendering()  # type: ignore[union-attr]


@settings(max_examples=10, deadline=None)
@given(rejoining())
def test_drawing_has_a_disc_for_every_rejoining_module(tree: Tree) -> None:
    ax = tree.draw()
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert len(ax.collections) == sum(tree.modules)
