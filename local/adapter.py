"""A small LoRA adapter in PEFT's form: two layers, in the format of safetensors, with numbers that are no training's.

Written by hand, since the format is a length, a header of JSON and the numbers; NumPy would be the largest of all the
packages that development needs.
"""

import json
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tunedrop.runs import CONFIG, WEIGHTS


def config(base: str, *, rank: int = 8, modules: Sequence[str] = ("q_proj", "v_proj"), **more: Any) -> dict[str, Any]:
    """What PEFT's `save_pretrained` writes as adapter_config.json, as far as it matters."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
        **more,
    }


def shapes(
    *, rank: int = 8, side: int = 64, layers: int = 2, modules: Sequence[str] = ("q_proj", "v_proj")
) -> dict[str, tuple[int, int]]:
    """The tensors of such an adapter: their names, as PEFT has them, and their shapes."""
    found = {}
    for layer in range(layers):
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            found[f"{name}.lora_A.weight"] = (rank, side)
            found[f"{name}.lora_B.weight"] = (side, rank)
    return found


def header(tensors: Mapping[str, tuple[int, int]], dtype: str = "F32", **metadata: str) -> bytes:
    """The first bytes of a file of safetensors with these tensors, one after the other."""
    item, at = {"F16": 2, "BF16": 2, "F32": 4}[dtype], 0
    told: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    for name, (rows, columns) in tensors.items():
        end = at + item * rows * columns
        told[name] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [at, end]}
        at = end
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)  # as the package aligns it
    return len(text).to_bytes(8, "little") + text


def weights(tensors: Mapping[str, tuple[int, int]], seed: int = 0, **metadata: str) -> bytes:
    """A whole file of such tensors, in F32."""
    numbers = random.Random(seed)  # noqa: S311 - nothing is kept secret with it
    count = sum(rows * columns for rows, columns in tensors.values())
    values = struct.pack(f"<{count}f", *(numbers.gauss(0, 0.02) for _ in range(count)))
    return header(tensors, **metadata) + values


def small_adapter(base: str, seed: int = 0) -> dict[str, bytes]:
    """Both files of one, by name; the configuration first, as they should be dropped."""
    return {CONFIG: json.dumps(config(base), indent=2).encode(), WEIGHTS: weights(shapes(), seed)}
