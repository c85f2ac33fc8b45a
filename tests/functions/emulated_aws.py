"""moto as a process of its own, so that what other tests do to moto's globals does not reach these. State machines are
not executed: what a function does is looked at here, not what follows from it.

`python -m tests.functions.emulated_aws` prints the endpoint and serves until it is ended.
"""

import threading

from local.gateway import Server


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app

    server = Server(0, MotoRequestHandler)
    print(server.url, flush=True)
    server.start(DomainDispatcherApplication(create_backend_app))
    threading.Event().wait()


if __name__ == "__main__":
    main()
