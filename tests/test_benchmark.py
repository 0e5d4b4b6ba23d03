"""The benchmark command prints tables, and it refuses wrong options."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from conal_rl import benchmark
from conal_rl.benchmarks import groups, update


def rows_of(table: str) -> dict[str, list[str]]:
    """Return the cells of every row of the tables, by the row's first cell."""
    return {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in table.splitlines()
        if len(cells := line.strip("│").split("│")) > 2
    }


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of torch's threads after a test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
def test_engine_compares_all_engines(capsys: pytest.CaptureFixture[str]) -> None:
    command = "engine --suite mt1:reach-v3 --envs-per-task 2 --rounds 1 --seconds 0.01 --threads 2"
    assert benchmark.main([*command.split(), "--episodes", "2"]) == 0
    output, errors = capsys.readouterr()
    started = [line.rpartition(", ")[2] for line in errors.splitlines() if "starts" in line]
    peers = ["native engine", "official sync", "official async", "native and limit"]
    assert [part.removesuffix(": starts") for part in started if "EnvPool" not in part] == [
        *peers,
        "official engine",
        "native engine",
    ]
    rows = rows_of(output)
    rates = {name: cells[0] for name, cells in rows.items() if name != "reach-v3"}
    assert {"official sync", "official async", "limit: mj_step, mj_forward", "native"} <= set(rates)
    assert all(float(rate.replace(",", "")) > 0 for rate in rates.values())
    assert rows["native"][1] == "1.00 x"
    assert rows["reach-v3"] == ["100.0%", "100.0%", "2 of 2"]
    assert " kB." in output


QUICK = "--tasks 3 --widths 8 8 --batch 4 --rounds 1 --seconds 0.001 --threads 1"


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_conflict_measures_every_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "ONE_INPUT_TASKS", 3)
    assert benchmark.main(["conflict", *QUICK.split()]) == 0
    output, errors = capsys.readouterr()
    assert errors.count(": starts\n") == 7
    assert "3 tasks, hidden layers 8, 8, batch 4 per task" in output
    assert "shared input: 3 tasks" in output
    assert f"cpu, {torch.get_num_threads()} threads" in output
    assert torch.get_num_threads() == 1
    rows = rows_of(output)
    for name, missing in {
        "HPS": [],
        "supernet": [3],
        "HPS, conv": [],
        "HPS, linear": [],
        "mixed, conv": [4, 5],
        "mixed, linear": [4, 5],
        "supernet, conv": [4, 5],
    }.items():
        plain, *ratios = rows[name]
        assert float(plain.removesuffix(" ms").replace(",", "")) > 0
        for number, ratio in enumerate(ratios, start=1):
            if number in missing:
                assert ratio == "-"
            else:
                assert float(ratio.removesuffix(" x")) > 0


@pytest.mark.usefixtures("threads")
def test_update_measures_every_peer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # the numbers of operations of tiny networks are long
    monkeypatch.setattr(update, "STORED", 100)
    assert benchmark.main(["update", *QUICK.split()]) == 0
    output, errors = capsys.readouterr()
    assert errors == "3 tasks, hidden layers 8, 8: starts\n"
    assert output.count("3 tasks, hidden layers 8, 8, batch 4 per task") == 1
    rows = rows_of(output)
    half = ["HPS, bf16", "derived, bf16", "supernet, bf16"]
    assert list(rows) == ["SB3's SAC", "HPS", "derived", "supernet", *half]
    for taken, ratio, flops, more, rate, _ in rows.values():
        assert float(taken.removesuffix(" ms").replace(",", "")) > 0
        assert float(ratio.removesuffix(" x")) > 0
        assert float(flops) > 0 and float(rate) > 0
        assert more.endswith(" x")
    assert rows["SB3's SAC"][1] == rows["SB3's SAC"][3] == "1.00 x"
    assert rows["HPS"][2:4] == rows["derived"][2:4]
    assert float(rows["supernet"][2]) > float(rows["HPS"][2])


@pytest.mark.usefixtures("threads")
def test_update_measures_the_presets_sizes_by_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(update, "measure", lambda *arguments: measured.append(arguments[:3]))
    for options in ("", "--tasks 2 4 --batch 7", "--widths 8 8"):
        assert benchmark.main(["update", *options.split()]) == 0
    large, small = [400] * 3, [256] * 3
    assert measured == [
        *((10, small, 64), (10, large, 256)),
        *((2, small, 7), (2, large, 7), (4, small, 7), (4, large, 7)),
        *((10, [8, 8], 64), (10, [8, 8], 256)),
    ]


def test_operations_of_an_update_equal_a_count_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "STORED", 100)
    tasks, batch, first, second = 3, 5, 6, 7
    peers = update.make_peers(tasks, (first, second), batch, "cpu")

    def forward(inputs: int, outputs: int) -> int:  # two operations per multiply-add
        return 2 * tasks * batch * (inputs * first + first * second + second * outputs)

    # The actor has 39 features and the task ID, and a mean and a deviation of 4 actions.
    # There are two critics.
    actor, critics = forward(39 + tasks, 2 * 4), 2 * forward(39 + 4 + tasks, 1)
    # A backward pass costs twice the forward pass, minus the input's gradient.
    actor_input = 2 * tasks * batch * (39 + tasks) * first
    critics_input = 2 * 2 * tasks * batch * (39 + 4 + tasks) * first
    target = actor + critics
    critic_step = 3 * critics - critics_input
    actor_step = (
        3 * actor - actor_input + 2 * critics
    )  # through the critics, without gradients of their weights
    total = target + critic_step + actor_step
    assert peers["HPS"].flops == peers["derived"].flops == total
    # SB3's SAC also computes the gradients of the critics' weights in the actor's step.
    assert peers["SB3's SAC"].flops == total + critics


def test_the_derived_tree_leaves_half_of_the_tasks_shared() -> None:
    tree = update.derived_tree([f"task-{i}" for i in range(10)], 3)
    assert [len(set(layer)) for layer in tree.layers] == [2, 3, 6]
    assert [layer.count(0) for layer in tree.layers] == [9, 8, 5]
    assert update.derived_tree("abcdefghi", 1).layers[0].count(0) == 5


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "WHAT"),
        ("engines", "invalid choice"),
        ("engine --suite mt11", "mt11"),
        ("engine --suite cartpole", "suite: got 'cartpole'"),
        ("engine --envs-per-task 0", "--envs-per-task: got 0, expected at least 1"),
        ("engine --rounds 0", "--rounds: got 0, expected more than 0"),
        ("engine --seconds -1", "--seconds: got -1.0, expected more than 0"),
        ("engine --threads 0", "--threads: got 0, expected more than 0"),
        ("engine --episodes -1", "--episodes: got -1, expected at least 0"),
        ("conflict --tasks 10 1", "--tasks: got 1, expected at least 2"),
        ("conflict --widths 8 0", "--widths: got 0, expected at least 1"),
        ("conflict --rounds 0", "--rounds: got 0, expected more than 0"),
        ("conflict --threads -1", "--threads: got -1, expected more than 0"),
        ("conflict --device gpu", "--device: got 'gpu', expected auto, cpu"),
        ("update --tasks 1", "--tasks: got 1, expected at least 2"),
        ("update --batch 0", "--batch: got 0, expected at least 1"),
        ("update --seconds 0", "--seconds: got 0.0, expected more than 0"),
        ("update --device cuda:99", "--device: got cuda:99"),
        ("update --tasks ten", "invalid int value"),
        ("mt10 methods --minutes 5", "--minutes: got 5.0"),
        ("mt10 recipe --steps 5", "--steps: got 5"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_groups_shows_a_row_for_every_method(
    capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    assert benchmark.main(["groups", "--seeds", "0-1", "--steps", "6"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert {"CoNAL-Pro", "CoNAL-Pro, no noticing", "CoNAL", "LTB"} <= set(rows)
    for name in ("CoNAL-Pro", "CoNAL", "LTB"):
        recovered, mean, lowest, labels = rows[name]
        assert recovered == "0 of 2"
        assert float(lowest) <= float(mean) < 1
        assert len(labels.split()) == 9


def test_rand_index_equals_a_computation_by_hand() -> None:
    """Hubert and Arabie's formula. Six items have 15 pairs, and 6 and 3 of them are together."""
    assert groups.rand_index([0, 0, 1, 1, 2, 2], [5, 5, 3, 3, 9, 9]) == 1
    # Both partitions join (0, 1) and (3, 4). Chance joins 6 * 3 / 15 = 1.2 pairs, and at most
    # (6 + 3) / 2 = 4.5 are possible.
    index = groups.rand_index([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 1])
    assert index == pytest.approx((2 - 1.2) / (4.5 - 1.2))
    assert groups.rand_index([0, 0, 0, 0], [0, 1, 2, 3]) == 0


@pytest.mark.slow
def test_conal_pro_with_noticing_recovers_the_groups(threads: None) -> None:
    torch.set_num_threads(1)
    tree = groups.search(groups.Family(0), groups.METHODS["CoNAL-Pro"])
    truth = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert groups.rand_index(tree.layers[-1], truth) > 0.6
