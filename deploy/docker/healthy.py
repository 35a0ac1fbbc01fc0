"""Ask the service in this container whether it is alive: exit status 0 where /healthz answers 200, else 1."""

import http.client
import os
import sys


def main() -> int:
    """Ask, with the service's own settings for the port."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["DEMOGRAPHICS_HTTP__PORT"]), timeout=4)
    try:
        connection.request("GET", "/healthz")
        return 0 if connection.getresponse().status == http.HTTPStatus.OK else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
