"""What is wrong with an adapter is found before anything is created for it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunedrop.adapter_check import MAX_FILE_BYTES, MAX_HEADER_BYTES, check_adapter, header_bytes
from tunedrop.runs import CONFIG, WEIGHTS

from local.adapter import config, header, shapes, small_adapter, weights

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
TENSORS = shapes()
GOOD = config(MISTRAL)
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def check(given_config=None, tensors=None, *, start=None, size=None, **changes):
    text = json.dumps({**GOOD, **changes} if given_config is None else given_config).encode()
    tensors = TENSORS if tensors is None else tensors
    start = header(tensors) if start is None else start
    if size is None:
        size = len(start) + sum(4 * rows * columns for rows, columns in tensors.values())
    return check_adapter(text, start, size)


def problems(checked):
    return [(problem.file, problem.path, problem.code) for problem in checked.errors]


def raw(told, room=0):
    """A file of safetensors whose header is `told`, and so many bytes after it."""
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + bytes(room)


def tensor(shape=(8, 64), offsets=(0, 2048), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# What is well


def test_a_small_adapter_of_pefts_form_is_well():
    files = small_adapter(MISTRAL)
    checked = check_adapter(files[CONFIG], files[WEIGHTS], len(files[WEIGHTS]))
    assert problems(checked) == []
    assert checked.model.name == "@cf/mistral/mistral-7b-instruct-v0.2-lora"
    assert (checked.rank, checked.tensors, checked.parameters) == (8, 8, 8 * 8 * 64)


def test_the_header_alone_is_enough():
    files = small_adapter(MISTRAL)
    start = files[WEIGHTS][: header_bytes(files[WEIGHTS][:8])]
    assert problems(check_adapter(files[CONFIG], start, len(files[WEIGHTS]))) == []


@pytest.mark.parametrize(
    ("base", "model", "kind"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", "@cf/mistral/mistral-7b-instruct-v0.2-lora", "mistral"),
        ("unsloth/mistral-7b-instruct-v0.2", "@cf/mistral/mistral-7b-instruct-v0.2-lora", "mistral"),
        ("/data/models/gemma-7b-it/", "@cf/google/gemma-7b-it-lora", "gemma"),
        ("google/gemma-3-12b-it", "@cf/google/gemma-3-12b-it", "gemma"),
        ("meta-llama/Llama-2-7b-chat-hf", "@cf/meta-llama/llama-2-7b-chat-hf-lora", "llama"),
        ("meta-llama/Llama-3.3-70B-Instruct", "@cf/meta/llama-3.3-70b-instruct-fp8-fast", "llama"),
    ],
)
def test_the_base_model_decides_what_serves_it(base, model, kind):
    checked = check(base_model_name_or_path=base)
    assert problems(checked) == []
    assert checked.model.name == model
    assert json.loads(checked.config)["model_type"] == kind


def test_a_missing_model_type_is_added_to_what_is_sent_and_said():
    checked = check()
    assert json.loads(checked.config) == {**GOOD, "model_type": "mistral"}
    assert [(problem.path, problem.code) for problem in checked.warnings] == [("model_type", "model_type_added")]


def test_a_configuration_that_has_it_is_sent_as_it_is():
    text = json.dumps({**GOOD, "model_type": "mistral"}).encode()
    checked = check_adapter(text, header(TENSORS), len(weights(TENSORS)))
    assert (checked.config, checked.warnings, problems(checked)) == (text, [], [])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_the_three_kinds_of_numbers_are_well(dtype):
    start = header(TENSORS, dtype)
    size = len(start) + (4 if dtype == "F32" else 2) * 8 * 8 * 64
    assert problems(check(start=start, size=size)) == []


def test_modules_may_have_ranks_of_their_own():
    tensors = shapes(modules=["q_proj"]) | shapes(rank=16, modules=["v_proj"])
    assert problems(check(tensors=tensors, rank_pattern={"v_proj": 16})) == []
    assert {code for *_, code in problems(check(tensors=tensors))} == {"rank_mismatch"}


def test_the_target_modules_may_be_a_pattern():
    assert problems(check(target_modules="all-linear")) == []


# What is wrong with the configuration


@pytest.mark.parametrize(
    ("changes", "path", "code"),
    [
        ({"peft_type": "LOHA"}, "peft_type", "not_lora"),
        ({"peft_type": None}, "peft_type", "not_lora"),
        ({"task_type": "SEQ_CLS"}, "task_type", "wrong_task"),
        ({"r": 0}, "r", "invalid_rank"),
        ({"r": -8}, "r", "invalid_rank"),
        ({"r": True}, "r", "invalid_rank"),
        ({"r": "8"}, "r", "invalid_rank"),
        ({"r": 8.0}, "r", "invalid_rank"),
        ({"r": None}, "r", "invalid_rank"),
        ({"rank_pattern": {"q_proj": 64}}, "rank_pattern.q_proj", "rank_too_large"),
        ({"use_dora": True}, "use_dora", "not_plain_lora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "not_plain_lora"),
        ({"bias": "all"}, "bias", "not_plain_lora"),
        ({"model_type": "qwen2"}, "model_type", "wrong_model_type"),
        ({"model_type": "llama"}, "model_type", "wrong_model_type"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path", "unknown_base"),
        ({"base_model_name_or_path": "mistralai/Mistral-7B-v0.1"}, "base_model_name_or_path", "unsupported_base"),
        ({"base_model_name_or_path": "Qwen/Qwen3-8B"}, "base_model_name_or_path", "unsupported_base"),
        (
            {"base_model_name_or_path": "unsloth/mistral-7b-instruct-v0.2-bnb-4bit"},
            "base_model_name_or_path",
            "quantised_base",
        ),
        ({"base_model_name_or_path": "TheBloke/gemma-7b-it-AWQ"}, "base_model_name_or_path", "quantised_base"),
        ({"target_modules": []}, "target_modules", "invalid_target_modules"),
        ({"target_modules": [1]}, "target_modules", "invalid_target_modules"),
        ({"target_modules": None}, "target_modules", "invalid_target_modules"),
        ({"target_modules": ["q_proj", "v_proj", "lm_head"]}, "target_modules", "unsupported_module"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "target_modules", "missing_tensors"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named_with_its_place(changes, path, code):
    (problem,) = check(**changes).errors
    assert (problem.file, problem.path, problem.code) == (CONFIG, path, code)
    assert len(problem.message.split()) > 5


def test_a_rank_of_64_is_too_large():
    checked = check(tensors=shapes(rank=64), r=64)
    assert problems(checked) == [(CONFIG, "r", "rank_too_large")]
    assert "64" in checked.errors[0].message
    assert "32" in checked.errors[0].message


def test_a_rank_of_32_is_not():
    assert problems(check(tensors=shapes(rank=32), r=32)) == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff{}",
        b"[" * 100_000,
        b'{"r": NaN}',
        b'{"r": 8, "r": 8}',
        b'{"r": ' + b"9" * 5000 + b"}",
        b" " * (1 << 20) + b"{}",
    ],
    ids=["empty", "cut", "list", "text", "bytes", "deep", "NaN", "twice", "digits", "long"],
)
def test_a_configuration_that_cannot_be_read_is_one_error(text):
    checked = check_adapter(text, header(TENSORS), len(weights(TENSORS)))
    assert problems(checked) == [(CONFIG, None, "invalid_json")]


# What is wrong with the weights


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (b"", "invalid_header"),
        (b"1234567", "invalid_header"),
        (b"<html><body>Bad gateway</body></html>", "invalid_header"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "invalid_header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "invalid_header"),
        ((100).to_bytes(8, "little") + b"{}", "invalid_header"),
        (raw(b"not JSON."), "invalid_header"),
        (raw([]), "invalid_header"),
        (raw(b'{"a":' * 100_000), "invalid_header"),
        (raw(b'{"x": {}, "x": {}}'), "invalid_header"),
        (raw({}), "no_tensors"),
        (raw({"__metadata__": {"format": "pt"}}), "no_tensors"),
    ],
    ids=[
        "empty",
        "short",
        "HTML",
        "huge",
        "over the bound",
        "cut",
        "no JSON",
        "list",
        "deep",
        "twice",
        "{}",
        "metadata",
    ],
)
def test_a_file_that_is_none_is_one_error(start, code):
    assert problems(check(start=start, size=len(start))) == [(WEIGHTS, None, code)]


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (7, "invalid_header"),
        ({}, "unsupported_dtype"),
        (tensor(dtype="I8"), "unsupported_dtype"),
        (tensor(dtype="F8_E4M3"), "unsupported_dtype"),
        (tensor(dtype=["F32"]), "unsupported_dtype"),
        (tensor(shape=[8]), "invalid_shape"),
        (tensor(shape=[8, 64, 1]), "invalid_shape"),
        (tensor(shape=[0, 64]), "invalid_shape"),
        (tensor(shape=[-8, 64]), "invalid_shape"),
        (tensor(shape=[8.0, 64]), "invalid_shape"),
        (tensor(shape=[10**30, 10**30]), "invalid_shape"),
        (tensor(offsets=[0, 2047]), "invalid_offsets"),
        (tensor(offsets=[2048, 0]), "invalid_offsets"),
        (tensor(offsets=[-1, 2047]), "invalid_offsets"),
        (tensor(offsets=[0, 10**30]), "invalid_offsets"),
        (tensor(offsets=["0", "2048"]), "invalid_offsets"),
        (tensor(offsets=[0]), "invalid_offsets"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(told, code):
    start = raw({A: told, B: tensor((64, 8), (2048, 4096))}, 4096)
    assert (WEIGHTS, A, code) in problems(check(start=start, size=len(start)))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model.embed_tokens.weight", "not_plain_lora"),
        ("base_model.model.lm_head.weight", "not_plain_lora"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "not_plain_lora"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "unsupported_module"),
        ("x" * 5000, "not_plain_lora"),
    ],
)
def test_a_tensor_that_is_not_served_is_named(name, code):
    (problem, *_) = check(tensors={**TENSORS, name: (8, 64)}).errors
    assert (problem.path, problem.code) == (name[:200], code)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (((0, 2048), (1024, 3072)), "overlaps"),
        (((0, 2048), (0, 2048)), "overlaps"),
        (((0, 2048), (2052, 4100)), "hole"),
        (((4, 2052), (2052, 4100)), "hole"),
        (((0, 2048), (2048, 4096)), "end after"),
    ],
)
def test_tensors_that_do_not_fill_the_file_are_not_taken(places, words):
    start = raw({A: tensor(offsets=places[0]), B: tensor((64, 8), places[1])}, 4100)
    checked = check(start=start, size=len(start), target_modules=["q_proj"])
    assert [problem.code for problem in checked.errors] == ["invalid_offsets"]
    assert words in checked.errors[0].message


def test_a_file_that_was_cut_short_is_not_taken():
    whole = weights(TENSORS)
    assert "invalid_offsets" in {problem.code for problem in check(start=whole[:-1], size=len(whole) - 1).errors}


def test_the_two_files_must_belong_together():
    other_rank = check(tensors=shapes(rank=16))
    assert {(problem.file, problem.code) for problem in other_rank.errors} == {(WEIGHTS, "rank_mismatch")}
    other_modules = check(tensors=shapes(modules=["q_proj", "v_proj", "k_proj"]))
    assert {problem.code for problem in other_modules.errors} == {"module_mismatch"}
    halves = check(tensors={name: shape for name, shape in TENSORS.items() if name != B})
    assert problems(halves) == [(WEIGHTS, B.removesuffix(".lora_B.weight"), "half_a_pair")]


def test_rank_and_sides_of_a_pair_agree():
    (uneven,) = check(tensors={**TENSORS, B: (64, 16)}).errors
    assert (uneven.code, uneven.path) == ("rank_mismatch", B.removesuffix(".lora_B.weight"))
    swapped = {name: shape[::-1] for name, shape in TENSORS.items()}
    assert {problem.code for problem in check(tensors=swapped).errors} == {"rank_mismatch"}


@pytest.mark.parametrize(("over", "codes"), [(-1, []), (0, ["too_large"])])
def test_a_file_has_fewer_than_300_megabytes(over, codes):
    size = MAX_FILE_BYTES + over
    start, room = header(TENSORS), sum(4 * rows * columns for rows, columns in TENSORS.values())
    found = {problem.code for problem in check(start=start, size=size).errors} - {"invalid_offsets"}
    assert len(start) + room < size
    assert sorted(found) == codes


# Hostile files


def test_of_many_errors_few_are_kept_and_all_are_counted():
    checked = check(tensors={f"tensor {number}": (8, 64) for number in range(5000)})
    assert checked.error_count >= 5000
    assert len(checked.errors) == 20


def test_the_largest_header_takes_little_time():
    tensors = shapes(layers=4000, modules=("q_proj", "v_proj"), side=64)
    start = header(tensors)
    assert 1 << 20 < len(start) <= MAX_HEADER_BYTES
    began = time.process_time()
    checked = check(tensors=tensors, start=start)
    assert problems(checked) == []
    assert time.process_time() - began < 5


@given(st.binary(max_size=64), st.binary(max_size=64), st.integers(0, 1 << 62))
def test_nothing_makes_the_check_fail(text, start, size):
    assert check_adapter(text, start, size).errors


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([*GOOD, "model_type", "use_dora"]),
)
def test_no_value_of_a_key_makes_the_check_fail(value, key):
    check({**GOOD, key: value})


@given(
    st.dictionaries(
        st.sampled_from(["dtype", "shape", "data_offsets", "x"]),
        st.sampled_from(["F32", [8, 64], [0, 2048], [64, 8], [1], None, {}, [2048, 4096], -1, [True, False]]),
    )
)
def test_no_tensor_makes_the_check_fail(told):
    start = raw({A: told, B: tensor((64, 8), (2048, 4096))}, 4096)
    check(start=start, size=len(start))
