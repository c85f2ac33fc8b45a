from tunedrop.at_init import made_at_init


def test_on_lambda_a_thing_is_made_when_the_handler_is_imported(monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    made = []
    made_at_init(lambda: made.append(1))
    assert made == [1]


def test_elsewhere_a_thing_is_made_when_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME", raising=False)
    made = []
    ask = made_at_init(lambda: made.append(1))
    assert made == []
    ask()
    assert made == [1]


def test_a_thing_is_made_once(monkeypatch):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    made = []
    ask = made_at_init(lambda: made.append(1) or made)
    assert ask() is ask()
    assert made == [1]
