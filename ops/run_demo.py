"""`make run`: starts the engine, runs the order demo against it, and stops both on Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from ops import children

ROOT = Path(__file__).parents[1]
PODIUM = Path(sys.executable).parent / "podium"
ENGINE_READY_S = 60
ENGINE_STOPS_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the state is kept")
    parser.add_argument("--orders", type=int, default=200, help="0: just the engine")
    parser.add_argument("--exit", action="store_true", help="stop after the table")
    options = parser.parse_args()
    serve = [str(PODIUM), "serve", "--port", str(options.port), "--data", str(options.data)]
    if options.orders == 0:
        print(f"The engine is on http://127.0.0.1:{options.port}. Ctrl-C stops it.", flush=True)
        os.execv(serve[0], serve)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    options.data.mkdir(parents=True, exist_ok=True)
    log = options.data / "podium.log"
    with log.open("ab") as output:
        # In a session of its own: Ctrl-C stops the workers first, then we stop the engine.
        engine = subprocess.Popen(
            serve, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        health = f"http://127.0.0.1:{options.port}/health"
        if not children.wait_until_served(engine, health, ENGINE_READY_S):
            print(f"The engine did not start; the end of {log}:\n{tail(log)}", file=sys.stderr)
            return 1
        print(f"The engine is on http://127.0.0.1:{options.port}, its log in {log}.", flush=True)
        return run_orders(options)
    except KeyboardInterrupt:
        return 130
    finally:
        stop(engine, log)


def run_orders(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "examples.orders.run"]
    command += ["--server", f"http://127.0.0.1:{options.port}/api"]
    command += ["--orders", str(options.orders), "--log", str(options.data / "workers.log")]
    command += ["--exit"] if options.exit else []
    # In a session of its own too: it is told to stop once, by us, and a second Ctrl-C does not
    # tear it out of stopping its workers.
    demo = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return demo.wait()
    except KeyboardInterrupt:
        demo.terminate()
        demo.wait()
        return 130


def stop(engine: subprocess.Popen[bytes], log: Path) -> None:
    if engine.poll() is not None:
        if engine.returncode:
            print(f"The engine ended by itself; see {log}.", file=sys.stderr)
        return
    if not children.stop(engine, ENGINE_STOPS_S):
        print(f"The engine did not stop in {ENGINE_STOPS_S} s: it was killed.", file=sys.stderr)


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


if __name__ == "__main__":
    sys.exit(main())
