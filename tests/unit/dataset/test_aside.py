"""Work beside the parse."""

import gc
import threading
import weakref

import pytest
from tunedrop.dataset.aside import Aside


def test_calls_run_in_their_order():
    done, aside = [], Aside(waiting=2)
    for number in range(50):
        aside.run(done.append, number)
    aside.finish()
    assert done == list(range(50))


def test_a_failure_is_raised_where_the_result_is_wanted():
    aside = Aside()
    aside.run(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        aside.finish()


def test_one_that_is_given_up_ends_its_thread():
    aside = Aside()
    aside.run(int, "7")
    thread, gone = aside._thread, weakref.ref(aside)
    del aside
    gc.collect()
    thread.join(timeout=5)
    assert gone() is None
    assert thread not in threading.enumerate()
