import pytest
from tunedrop.metrics import curve, training_loss


@pytest.mark.parametrize("name", ["train_loss", "training_loss"])
def test_the_training_loss_is_read_from_its_column(name):
    assert training_loss(f"step,{name},other\n1,2.5,9\n2,0.5,9\n".encode()) == (2.5, 0.5)


def test_what_is_no_number_is_left_out():
    assert training_loss(b"step,train_loss\n1,2.5\n2,\n3\n4,nan\n5,inf\n6,1\n") == (2.5, 1.0)


def test_many_steps_are_thinned_out_but_for_the_first_and_the_last():
    losses = training_loss(b"train_loss\n" + b"".join(b"%d\n" % step for step in range(1000)))
    assert (len(losses), losses[0], losses[-1]) == (32, 0.0, 999.0)
    assert list(losses) == sorted(losses)


@pytest.mark.parametrize(
    "table",
    [
        *(b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"<!doctype html><h1>no</h1>", b"train_loss\r1\r2\r", b"\x00" * 9),
        b"train_loss\n" + b"9" * 200_000 + b"\n",
        b'train_loss\n"1\n',
    ],
)
def test_a_table_that_is_none_has_no_loss_and_raises_nothing(table):
    assert isinstance(training_loss(table), tuple)


@pytest.mark.parametrize(("losses", "line"), [([1.74, 0.44], "1.74 █▁ 0.44"), ([1.0], "1 ▁ 1"), ([2.0, 2.0], "2 ▁▁ 2")])
def test_a_curve_is_drawn_between_the_first_and_the_last(losses, line):
    assert curve(losses) == line
