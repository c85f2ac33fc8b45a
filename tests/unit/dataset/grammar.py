"""Generates examples that the rules accept, and mutations of them."""

import json
from copy import deepcopy
from itertools import chain

from hypothesis import strategies as st

from tests.unit.dataset.builders import CALL, IMAGE, TOOL

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
texts = words | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": words}), min_size=1, max_size=2)


def message(role, content=texts, **further):
    return st.fixed_dictionaries({"role": st.just(role), "content": content}, optional={"name": names} | further)


questions = message("user", texts | st.just([IMAGE]))
plain_questions = message("user")
answers = message("assistant", weight=st.sampled_from([1, None]))
instructions = message("system") | message("developer")


@st.composite
def tool_turns(draw):
    """An assistant's calls, each answered once, in any order."""
    ids = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    arguments = draw(values.map(json.dumps))
    calls = [CALL | {"id": id_, "function": {"name": draw(names), "arguments": arguments}} for id_ in ids]
    replies = [{"role": "tool", "tool_call_id": id_, "content": draw(words)} for id_ in draw(st.permutations(ids))]
    return [{"role": "assistant", "tool_calls": calls}, *replies]


def turns(asked):
    return st.lists(st.builds(lambda q, a: [q, a], asked, answers) | tool_turns(), max_size=3).map(
        lambda parts: [*chain.from_iterable(parts)]
    )


@st.composite
def chats(draw):
    messages = draw(st.lists(instructions, max_size=1)) + draw(turns(questions)) + [draw(answers)]
    return {"messages": messages} | draw(st.sampled_from([{}, {"tools": [TOOL]}, {"parallel_tool_calls": True}]))


@st.composite
def preferences(draw):
    given = {"messages": [*draw(turns(plain_questions)), draw(plain_questions)]}
    return {"input": given, "preferred_output": [draw(answers)], "non_preferred_output": [draw(answers)]}


@st.composite
def reinforcements(draw):
    messages = [m for m in draw(turns(questions)) if m["role"] != "system"] + [draw(questions)]
    return draw(st.dictionaries(words, values, max_size=3)) | {"messages": messages}


completions = st.fixed_dictionaries({"prompt": words, "completion": words})
EXAMPLES = {
    "chat": chats(),
    "preference": preferences(),
    "reinforcement": reinforcements(),
    "completion": completions,
}


@st.composite
def mutations(draw, examples):
    """An example with one place inside it changed: removed, or replaced by something else."""
    root = [deepcopy(draw(examples))]
    holder, key = root, 0
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 3)):
        holder = holder[key]
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    if holder is not root and draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(values)
    return root[0]
