"""A large adapter through the publishing function: wall time, processor time and peak memory of its process.

`python -m tests.bench.adapter [MEGABYTES]` starts the embedded stack, puts an adapter of that size (250) into its
bucket past the events, and has the handler publish it in a fresh process that sees what Lambda would show it.
"""

import json
import os
import subprocess
import sys
import time

from tunedrop.runs import CONFIG, WEIGHTS, run_id_of

from local import deploy
from local.adapter import config, header
from local.stack import Options, Stack

FUNCTION = "PublishAdapterFunction"
RANK, SIDE = 32, 8192  # at two bytes a number a mebibyte for the two halves of a module

_PROBE = """
import json, sys, time
def peak():  # not that of getrusage, which is the parent's where the parent was larger
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
event = json.load(sys.stdin)
import handler
class Context:
    function_name, memory_limit_in_mb, aws_request_id = "bench", 512, "bench"
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:bench"
idle = peak()
began, spent = time.monotonic(), time.process_time()
answer = handler.handler(event, Context())
told = {"seconds": time.monotonic() - began, "cpu": time.process_time() - spent, "idle": idle, "peak": peak()}
print(json.dumps(told | {"answer": answer}))
"""


def main() -> None:
    """Measures, and prints one line."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 250
    layers = round(megabytes * 1e6 / (4 * 2 * RANK * SIDE))
    shapes = {}
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes |= {f"{name}.lora_A.weight": (RANK, SIDE), f"{name}.lora_B.weight": (SIDE, RANK)}
    size = sum(2 * rows * columns for rows, columns in shapes.values())
    weights = header(shapes, "BF16") + bytes(size)

    with Stack(Options(time_scale=1)) as stack:
        s3 = deploy.client("s3", stack.address.aws)
        key = f"adapters/bench/{WEIGHTS}"
        text = json.dumps(config("meta-llama/Llama-3.3-70B-Instruct", rank=RANK)).encode()
        s3.put_object(Bucket=stack.address.bucket, Key=f"adapters/bench/{CONFIG}", Body=text)
        etag = s3.put_object(Bucket=stack.address.bucket, Key=key, Body=weights)["ETag"].strip('"')
        run_id = run_id_of(stack.address.bucket, key, etag, str(time.time()))
        event = {"run_id": run_id, "bucket": stack.address.bucket, "key": key, "etag": etag, "size": len(weights)}
        function = stack.functions.function(FUNCTION)
        folders = [layer / "python" if (layer / "python").is_dir() else layer for layer in function.layers]
        ran = subprocess.run(
            [sys._base_executable, "-S", "-P", "-B", "-c", _PROBE],
            env={
                **function.environment,
                "PYTHONPATH": os.pathsep.join(map(str, (function.code, *folders))),
                "AWS_LAMBDA_FUNCTION_NAME": FUNCTION,
                "AWS_ENDPOINT_URL": stack.address.aws,
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": deploy.REGION,
            },
            input=json.dumps(event),
            capture_output=True,
            text=True,
            check=True,
        )
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["answer"]["state"] == "succeeded", told
    print(
        f"{len(weights) / 1e6:.0f} MB, {len(shapes)} tensors: {told['seconds']:.1f} s, {told['cpu']:.1f} s of "
        f"processor; peak {told['peak'] / 1024:.0f} MiB, of which {told['idle'] / 1024:.0f} MiB before the first byte"
    )


if __name__ == "__main__":
    main()
