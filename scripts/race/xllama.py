"""llama-server from the xllamacpp wheel, behind the flags of the program: `python xllama.py -m MODEL --port N …`.

The wheel has the server as a Python class, so the flags that the race track uses are set as its parameters. A flag that
is not known here ends the program: it must not race with other settings than those in its table.
"""

import signal
import sys
from collections.abc import Callable

import xllamacpp

SWITCHES: dict[str, tuple[str, object]] = {
    "--no-kv-unified": ("kv_unified", False),
    "--no-ui": ("ui", False),
    "--no-slots": ("endpoint_slots", False),
}
NUMBERS = {
    "-np": "n_parallel",
    "-c": "n_ctx",
    "-b": "n_batch",
    "-ub": "n_ubatch",
    "--port": "port",
    "--timeout": "timeout_read",
    "--cache-ram": "cache_ram_mib",
}


def parameters(arguments: list[str]) -> xllamacpp.CommonParams:
    """The flags as the wheel's parameters. Raises SystemExit for one that has no counterpart here."""
    params = xllamacpp.CommonParams()
    special: dict[str, Callable[[str], None]] = {
        "-m": lambda text: setattr(params.model, "path", text),
        "--host": lambda text: setattr(params, "hostnames", [text]),
        "-t": lambda text: setattr(params.cpuparams, "n_threads", int(text)),
        "-tb": lambda text: setattr(params.cpuparams_batch, "n_threads", int(text)),
        "-ngl": lambda text: setattr(params, "n_gpu_layers", -1 if text == "all" else int(text)),
        "-fa": lambda text: setattr(params, "flash_attn_type", {"auto": -1, "off": 0, "on": 1}[text]),
    }
    left = iter(arguments)
    for flag in left:
        if flag in SWITCHES:
            setattr(params, *SWITCHES[flag])
        elif flag in NUMBERS:
            setattr(params, NUMBERS[flag], int(next(left)))
        elif flag in special:
            special[flag](next(left))
        else:
            raise SystemExit(f"xllamacpp's server cannot be given {flag} here; use a llama-server program")
    return params


def main() -> int:
    """Serve until a signal comes."""
    server = xllamacpp.Server(parameters(sys.argv[1:]))
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.exit(main())
