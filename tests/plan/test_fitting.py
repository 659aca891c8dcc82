"""`train.micro_rows: auto` in a plan: the rows that a run would take."""

import pytest

from jaxpref import make_config
from jaxpref.plan.child import CompilerCrashed
from jaxpref.plan.chips import CHIPS
from jaxpref.plan.fitting import fitting_rows

CHIP = CHIPS["v5e"]


def config(rows):
    return make_config({"out": "run", "model": {"path": "m"}, "data": {"train": ["t"]}, "train": {"micro_rows": rows}})


def said(rows: int, share: float, micro_batches: int = 2, **more):
    """What the compiler says of a step that takes this share of a chip for a row."""
    return {
        "micro_rows": rows, "micro_batches": micro_batches, "on_policy": False, "hbm": {}, "saved": 0,
        "arguments": 0.2 * CHIP.hbm, "temporaries": share * rows * CHIP.hbm, **more,
    }  # fmt: skip


def planned(of_row: float, **more):
    asked = []

    def compiled(configs):
        rows = configs[0].train.micro_rows
        asked.append(rows)
        return said(2 if rows == "auto" else rows, of_row, **more)

    (one,), plan = fitting_rows([config("auto")], CHIP, compiled)
    return asked, one.train.micro_rows, plan["micro_rows"]


def test_rows_are_doubled_while_they_fit():
    assert planned(0.08) == (["auto", 4, 8, 16], 8, 8)


def test_what_does_not_leave_a_run_its_room_is_not_taken():
    # 0.2 + 4 x 0.182 = 0.928 of the chip, where a run plans for 0.92
    assert planned(0.182) == (["auto", 4], 2, 2)


def test_a_micro_batch_that_holds_the_step_is_enough():
    assert planned(0.01, micro_batches=1) == (["auto"], 2, 2)


def test_rows_that_are_drawn_in_training_stay():
    assert planned(0.01, on_policy=True) == (["auto"], 2, 2)


def test_the_fewest_rows_are_shown_where_they_do_not_fit():
    assert planned(0.9) == (["auto"], "auto", 2)
    assert planned(0.1, does_not_fit="why") == (["auto"], "auto", 2)


def test_rows_at_which_the_compiler_crashes_are_not_taken():
    def compiled(configs):
        rows = configs[0].train.micro_rows
        if rows == 8:
            raise CompilerCrashed("signal 11")
        return said(2 if rows == "auto" else rows, 0.01)

    (one,), plan = fitting_rows([config("auto")], CHIP, compiled)
    assert (one.train.micro_rows, plan["micro_rows"], plan["crashed_at"]) == (4, 4, 8)
    with pytest.raises(CompilerCrashed):
        fitting_rows([config(8)], CHIP, compiled)


@pytest.mark.parametrize("rows", [None, 4])
def test_rows_that_are_given_are_planned(rows):
    (one,), plan = fitting_rows([config(rows)], CHIP, lambda configs: said(4, 0.01))
    assert one.train.micro_rows == rows and plan["micro_rows"] == 4
