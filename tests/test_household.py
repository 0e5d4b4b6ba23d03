"""Rules of the tests themselves: what they import, and how they are called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
LONGER = {  # to be shortened with the tests around them; nothing is added here
    "test_a_derived_network_has_weights_of_its_own_and_the_supernets_dtype",
    "test_a_last_step_that_spoils_the_weights_takes_nothing_from_the_selected",
    "test_a_module_that_captures_runs_once_on_one_input_and_leaves_row_gradients",
    "test_an_evaluation_that_fails_on_the_way_is_said_and_training_goes_on",
    "test_an_info_that_the_env_returns_again_and_again_is_left_as_it_is",
    "test_and_deeper_is_refused_where_nothing_is_behind_one_copy_alone",
    "test_capturing_ends_with_the_context_and_lets_go_of_the_gradients",
    "test_every_task_gets_as_many_episodes_from_a_fixed_number_of_each_env",
    "test_gumbel_gates_are_one_hot_with_the_gradient_of_the_soft_sample",
    "test_layers_keep_their_numbers_where_one_before_them_is_not_shared",
    "test_modules_capture_neither_own_inputs_nor_without_gradients_nor_twice",
    "test_modules_run_once_and_go_backwards_once_for_each_of_their_tasks",
    "test_modules_that_work_in_place_leave_their_siblings_inputs_alone",
    "test_row_gradients_need_a_capture_and_are_zero_where_no_loss_depends",
    "test_runs_of_each_task_and_wider_ones_are_marked_by_what_does_not_follow",
    "test_runs_that_are_no_seeds_of_each_other_have_lines_of_their_own",
    "test_statistics_of_a_module_say_whether_any_of_its_tasks_was_held",
    "test_tasks_share_the_trunk_before_their_points_and_then_their_groups_branch",
    "test_the_first_copy_wins_a_tie_so_that_all_tasks_share_at_the_start",
    "test_the_search_space_is_one_trunk_and_one_set_of_modules_per_task",
    "test_training_goes_on_from_its_last_weights_not_from_the_selected",
    "test_trees_of_a_search_that_ended_early_train_for_as_long_as_others",
    "test_under_any_pair_the_noise_of_many_tasks_holds_even_a_trunk_that_all_could_share",
    "test_with_one_input_no_private_module_runs_backwards_once_per_task",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The parsed files of all tests and helpers, by their path."""
    for path in sorted(TESTS.rglob("*.py")):
        yield str(path.relative_to(TESTS)), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_is_imported() -> None:
    """What several tests need is in tests/helpers."""
    found = [
        f"{file} imports {name}"
        for file, tree in modules()
        for name in imported(tree)
        if any(part.startswith(("test_", "conftest")) for part in name.split(".")[:-1])
    ]
    assert found == []


def test_names_are_under_60_letters() -> None:
    found = {
        node.name
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if len(node.name.removeprefix("test_")) >= 60
    }
    assert found - LONGER == set()
