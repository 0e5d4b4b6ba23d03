"""The benchmark command: what it prints, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from conal_rl import benchmark
from conal_rl.benchmarks import groups, update


def rows_of(table: str) -> dict[str, list[str]]:
    """The other cells of every row of the tables, by the first."""
    return {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in table.splitlines()
        if len(cells := line.strip("│").split("│")) > 2
    }


@pytest.fixture
def threads() -> Iterator[None]:
    """What a command does to torch's threads is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
def test_engines(capsys: pytest.CaptureFixture[str]) -> None:
    command = "engine --suite mt1:reach-v3 --envs-per-task 2 --rounds 1 --seconds 0.01 --threads 2"
    assert benchmark.main([*command.split(), "--episodes", "2"]) == 0
    told = capsys.readouterr().out
    rows = rows_of(told)
    rates = {name: cells[0] for name, cells in rows.items() if name != "reach-v3"}
    assert {"official sync", "official async", "limit: mj_step, mj_forward", "native"} <= set(rates)
    assert all(float(rate.replace(",", "")) > 0 for rate in rates.values())
    assert rows["native"][1] == "1.00 x"
    assert rows["reach-v3"] == ["100.0%", "100.0%", "2 of 2"]
    assert "kB each" in told


QUICK = "--tasks 3 --widths 8 8 --batch 4 --rounds 1 --seconds 0.001 --threads 1"


@pytest.mark.usefixtures("threads")
def test_conflict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "ONE_INPUT_TASKS", 3)
    assert benchmark.main(["conflict", *QUICK.split()]) == 0
    told = capsys.readouterr().out
    assert "3 tasks, hidden layers 8, 8, batch 4 per task" in told
    assert "one input for all tasks: 3 tasks" in told
    assert f"cpu, {torch.get_num_threads()} threads" in told
    assert torch.get_num_threads() == 1
    rows = rows_of(told)
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
        assert float(plain.removesuffix(" ms")) > 0
        for number, ratio in enumerate(ratios, start=1):
            if number in missing:
                assert ratio == "-"
            else:
                assert float(ratio.removesuffix(" x")) > 0


@pytest.mark.usefixtures("threads")
def test_update(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # operations of tiny networks are long numbers
    monkeypatch.setattr(update, "STORED", 100)
    assert benchmark.main(["update", *QUICK.split()]) == 0
    told = capsys.readouterr().out
    assert told.count("3 tasks, hidden layers 8, 8, batch 4 per task") == 1
    rows = rows_of(told)
    half = ["HPS, bf16", "derived, bf16", "supernet, bf16"]
    assert list(rows) == ["SB3's SAC", "HPS", "derived", "supernet", *half]
    for taken, ratio, flops, more, rate, _ in rows.values():
        assert float(taken.removesuffix(" ms")) > 0
        assert float(ratio.removesuffix(" x")) > 0
        assert float(flops) > 0 and float(rate) > 0
        assert more.endswith(" x")
    assert rows["SB3's SAC"][1] == rows["SB3's SAC"][3] == "1.00 x"
    assert rows["HPS"][2:4] == rows["derived"][2:4]
    assert float(rows["supernet"][2]) > float(rows["HPS"][2])


@pytest.mark.usefixtures("threads")
def test_presets_sizes_are_measured_unless_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(update, "measure", lambda *given: measured.append(given[:3]))
    for options in ("", "--tasks 2 4 --batch 7", "--widths 8 8"):
        assert benchmark.main(["update", *options.split()]) == 0
    large, small = [400] * 3, [256] * 3
    assert measured == [
        *((10, small, 64), (10, large, 256)),
        *((2, small, 7), (2, large, 7), (4, small, 7), (4, large, 7)),
        *((10, [8, 8], 64), (10, [8, 8], 256)),
    ]


def test_operations_of_an_update_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "STORED", 100)
    tasks, batch, first, second = 3, 5, 6, 7
    peers = update.make_peers(tasks, (first, second), batch, "cpu")

    def forward(inputs: int, outputs: int) -> int:  # two operations per multiply-add
        return 2 * tasks * batch * (inputs * first + first * second + second * outputs)

    # 39 features and the task ID; a mean and a deviation of 4 actions; two critics.
    actor, critics = forward(39 + tasks, 2 * 4), 2 * forward(39 + 4 + tasks, 1)
    # A backward pass is twice the forward pass, less the gradient of an input that needs none.
    actor_input = 2 * tasks * batch * (39 + tasks) * first
    critics_input = 2 * 2 * tasks * batch * (39 + 4 + tasks) * first
    target = actor + critics
    critic_step = 3 * critics - critics_input
    actor_step = 3 * actor - actor_input + 2 * critics  # through critics whose weights stay
    total = target + critic_step + actor_step
    assert peers["HPS"].flops == peers["derived"].flops == total
    # SB3's takes the gradients of the critics' weights in the actor's step too, to no purpose.
    assert peers["SB3's SAC"].flops == total + critics


def test_the_derived_tree() -> None:
    tree = update.derived_tree([f"task-{i}" for i in range(10)], 3)
    assert [len(set(layer)) for layer in tree.layers] == [2, 3, 6]
    assert [layer.count(0) for layer in tree.layers] == [9, 8, 5]
    assert update.derived_tree("abcdefghi", 1).layers[0].count(0) == 5


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("", "WHAT"),
        ("engines", "invalid choice"),
        ("engine --suite mt11", "mt11"),
        ("engine --suite cartpole", "no Meta-World suite"),
        ("engine --envs-per-task 0", "--envs-per-task must be at least 1"),
        ("engine --rounds 0", "--rounds must be more than 0"),
        ("engine --seconds -1", "--seconds must be more than 0"),
        ("engine --threads 0", "--threads must be more than 0"),
        ("engine --episodes -1", "--episodes must be at least 0"),
        ("conflict --tasks 10 1", "--tasks must be at least 2, not 1"),
        ("conflict --widths 8 0", "--widths must be at least 1, not 0"),
        ("conflict --rounds 0", "--rounds must be more than 0"),
        ("conflict --threads -1", "--threads must be more than 0"),
        ("conflict --device gpu", "--device: got 'gpu', expected auto, cpu"),
        ("update --tasks 1", "--tasks must be at least 2, not 1"),
        ("update --batch 0", "--batch must be at least 1, not 0"),
        ("update --seconds 0", "--seconds must be more than 0"),
        ("update --device cuda:99", "--device: got cuda:99"),
        ("update --tasks ten", "invalid int value"),
        ("mt10 methods --minutes 5", "--minutes: not an option of methods"),
        ("mt10 recipe --steps 5", "--steps: not an option of recipe"),
    ],
)
def test_wrong_command_lines(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert told in err


def test_groups(capsys: pytest.CaptureFixture[str], threads: None) -> None:
    assert benchmark.main(["groups", "--seeds", "2", "--steps", "6"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert {"CoNAL-Pro", "CoNAL-Pro, no noticing", "CoNAL", "LTB"} <= set(rows)
    for name in ("CoNAL-Pro", "CoNAL", "LTB"):
        recovered, mean, lowest, labels = rows[name]
        assert recovered == "0 of 2"
        assert float(lowest) <= float(mean) < 1
        assert len(labels.split()) == 9


def test_rand_index_by_hand() -> None:
    """Hubert and Arabie's formula on six items: 15 pairs, of which 6 and 3 are together."""
    assert groups.rand_index([0, 0, 1, 1, 2, 2], [5, 5, 3, 3, 9, 9]) == 1
    # Together in both: (0, 1) and (3, 4). By chance 6 * 3 / 15 = 1.2, at most (6 + 3) / 2 = 4.5.
    found = groups.rand_index([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 1])
    assert found == pytest.approx((2 - 1.2) / (4.5 - 1.2))
    assert groups.rand_index([0, 0, 0, 0], [0, 1, 2, 3]) == 0


@pytest.mark.slow
def test_noticing_conflicts_conal_pro_recovers_groups(threads: None) -> None:
    torch.set_num_threads(1)
    tree = groups.search(groups.Family(0), groups.METHODS["CoNAL-Pro"])
    truth = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert groups.rand_index(tree.layers[-1], truth) > 0.6
