"""Run in a fresh interpreter that sees what Lambda shows a function: imports the handler, has it handle the event on
standard input, and prints what was loaded when, as the last line.
"""

import json
import sys
import time


class Context:
    """What of Lambda's context object is looked at."""

    function_name = "test"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:test"
    aws_request_id = "52fdfc07-2182-454f-963f-5f0f9a621d72"

    def get_remaining_time_in_millis(self):
        return 900_000


if __name__ == "__main__":
    event = json.load(sys.stdin)
    started = time.process_time()
    import handler

    spent = time.process_time() - started
    at_init = set(sys.modules)
    answer = handler.handler(event, Context()) if event else None
    later = set(sys.modules) - at_init
    print()
    print(json.dumps({"at_init": sorted(at_init), "later": sorted(later), "answer": answer, "seconds": spent}))
