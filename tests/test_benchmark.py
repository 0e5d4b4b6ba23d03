"""The benchmark command: what it prints, and what it refuses."""

from __future__ import annotations

import pytest

from conal_rl import benchmark


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
def test_engines(capsys: pytest.CaptureFixture[str]) -> None:
    command = "engine --suite mt1:reach-v3 --envs-per-task 2 --rounds 1 --seconds 0.01 --threads 2"
    assert benchmark.main([*command.split(), "--episodes", "2"]) == 0
    told = capsys.readouterr().out
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in told.splitlines()
        if len(cells := line.strip("│").split("│")) > 2
    }
    rates = {name: cells[0] for name, cells in rows.items() if name != "reach-v3"}
    assert {"official sync", "official async", "limit: mj_step, mj_forward", "native"} <= set(rates)
    assert all(float(rate.replace(",", "")) > 0 for rate in rates.values())
    assert rows["native"][1] == "1.00 x"
    assert rows["reach-v3"] == ["100.0%", "100.0%", "2 of 2"]
    assert "kB each" in told


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
    ],
)
def test_wrong_command_lines(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert told in err
