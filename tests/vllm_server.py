"""vLLM's OpenAI server for a test: started on a free port, waited for, and ended with every process it started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

START_S, END_S = 300, 20  # start-up took 30 to 75 s on two busy cores


def build_environment(root, **more):
    """One thread a process: on cores that others use too, threads that wait for each other cost ten times the work."""
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", **cpu, **more}


@contextlib.contextmanager
def serve(python, arguments, log, environment):
    """Yield the server's URL once it answers. The module takes the options of `vllm serve`, whose command is missing
    from vllm-cpu: it asks for the version of a package called vllm and ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own, which is what ends below
        )
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _end(server)


def _wait_until_healthy(server, url, log):
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended with {server.returncode}: {log.read_text()[-3000:]}"
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"no answer from the server in {START_S} s: {log.read_text()[-3000:]}")


def _end(server):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # its workers too, should they have stayed
    server.wait(END_S)
