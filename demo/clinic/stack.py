"""The clinical programs: Orthanc, OHIF behind nginx, and a DICOM peer, each a process on 127.0.0.1.

    python -m demo.clinic.stack start | stop [--folder outputs/clinic] [--port_base 8300]

Debian's `orthanc`, `orthanc-dicomweb` and `nginx-light`, and the unpacked npm package `@ohif/app` are needed;
`demo/clinic/start.sh` installs them. Knows nothing of browsers or tasks.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from demo.clinic.samples import PEER_FILES, find_files, list_instances, load_store_files
from sft.files import is_full_disk

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "outputs" / "clinic"
PORT_BASE = int(os.environ.get("CLINIC_PORT_BASE", "8300"))
# The targets for sending, all on the peer's port: name in Orthanc -> application entity title.
MODALITIES = {"remote-pacs": "REMOTEPACS", "teaching-archive": "TEACHING", "ward-7-viewer": "WARD7"}
STARTUP_S = 60.0
DICOMWEB_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"

# `__filename`: the bundled onnxruntime reads this name of Node's, and one load in three stays blank without it.
APP_CONFIG = """window.__filename = "/ort.js";
window.config = {
  routerBasename: "/", extensions: [], modes: [], showStudyList: true, maxNumberOfWebWorkers: 2,
  showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false, showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true, investigationalUseDialog: { option: "never" }, showErrorDetails: "never",
  defaultDataSourceName: "dicomweb",
  dataSources: [{
    namespace: "@ohif/extension-default.dataSourcesModule.dicomweb", sourceName: "dicomweb",
    configuration: {
      friendlyName: "Orthanc", name: "orthanc", wadoUriRoot: "/dicom-web", qidoRoot: "/dicom-web",
      wadoRoot: "/dicom-web", qidoSupportsIncludeField: true, supportsReject: false, imageRendering: "wadors",
      thumbnailRendering: "wadors", enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      dicomUploadEnabled: false, omitQuotationForMultipartRequest: true, bulkDataURI: { enabled: false },
    },
  }],
};
"""

# The rewrite of $args: this DICOMweb plug-in does not split `%2C` in `includefield`.
NGINX_CONFIG = """daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 256; }}
http {{
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{ohif_port};
    root {ohif_dist};
    add_header Cross-Origin-Opener-Policy same-origin;
    add_header Cross-Origin-Embedder-Policy require-corp;
    location = /app-config.js {{ alias {folder}/app-config.js; }}
    location /dicom-web/ {{
      if ($args ~ ^(.*)%2C(.*)$) {{ set $args $1,$2; }}
      if ($args ~ ^(.*)%2C(.*)$) {{ set $args $1,$2; }}
      if ($args ~ ^(.*)%2C(.*)$) {{ set $args $1,$2; }}
      if ($args ~ ^(.*)%2C(.*)$) {{ set $args $1,$2; }}
      proxy_pass http://127.0.0.1:{orthanc_port};
      proxy_set_header Host $host:$server_port;
    }}
    location / {{ try_files $uri $uri/ /index.html; }}
  }}
}}
"""


class StackFailure(RuntimeError):
    """A program that did not start, died or does not hold what it must."""


class Stack:
    """Orthanc, nginx with OHIF, and the peer, as processes that outlive this one; their state is in `folder`.

    Args:
        folder: logs, process ids, Orthanc's store, what the peer received, and OHIF's application (`package/dist`).
        ohif_dist: folder of the built OHIF application, where it is not in `folder`.
        port_base: Orthanc's web port; the next three are Orthanc's DICOM port, OHIF's and the peer's.
    """

    def __init__(self, folder: Path = FOLDER, ohif_dist: Path | None = None, port_base: int = PORT_BASE):
        self.folder = folder.resolve()
        self.ohif_dist = (ohif_dist or FOLDER / "package/dist").resolve()
        self.orthanc_port, self.dicom_port, self.ohif_port, self.peer_port = range(port_base, port_base + 4)
        self.orthanc_url = f"http://127.0.0.1:{self.orthanc_port}"
        self.ohif_url = f"http://127.0.0.1:{self.ohif_port}"
        self.received = self.folder / "received.jsonl"
        self._children: list[subprocess.Popen] = []

    def find_missing(self) -> list[str]:
        """Name what must be installed first."""
        missing = [name for name in ("Orthanc", "nginx") if not _find_program(name)]
        if not Path(DICOMWEB_PLUGIN).is_file():
            missing.append("orthanc-dicomweb")
        if not (self.ohif_dist / "index.html").is_file():
            missing.append("@ohif/app")
        return missing

    def start(self) -> list[str]:
        """Start what does not run, and return the names of what was started."""
        if missing := self.find_missing():
            raise StackFailure(f"not installed: {', '.join(missing)}; bash demo/clinic/start.sh installs them")
        self._claim_ports()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        started = []
        if not self.is_running("peer"):
            self._start_peer()
            started.append("peer")
        if not self.is_running("orthanc"):
            self.reset()
            started.append("orthanc")
        if not self.is_running("nginx"):
            self._start_nginx()
            started.append("nginx")
        return started

    def stop(self, names: list[str] | None = None) -> list[str]:
        """Stop processes, all by default, and return the names of those that ran."""
        names = ["nginx", "peer", "orthanc"] if names is None else names
        stopped = [name for name in names if self._stop_process(name)]
        for child in self._children:
            child.poll()
        return stopped

    def _claim_ports(self) -> None:
        """Note which ports the programs of this folder have; refuse others while one of them runs."""
        note = self.folder / "port_base"
        noted = note.read_text() if note.exists() else ""
        running = [name for name in ("orthanc", "nginx", "peer") if self.is_running(name)]
        if running and noted != str(self.orthanc_port):
            raise StackFailure(
                f"{', '.join(running)} of {self.folder} runs on the ports from {noted}, not {self.orthanc_port}; "
                f"bash demo/clinic/stop.sh ends it, or set CLINIC_PORT_BASE={noted}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(str(self.orthanc_port))

    def is_running(self, name: str) -> bool:
        return self._find_pid(name) is not None

    def reset(self) -> None:
        """Bring Orthanc to its known store: a new process on an empty folder, then the sample files in fixed order.

        Raises:
            StackFailure: Orthanc does not start, or then holds something else.
        """
        self._stop_process("orthanc", signal.SIGKILL)  # its store is thrown away, so it need not end in good order
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        self.received.unlink(missing_ok=True)
        try:
            self._start_orthanc()
            for content in load_store_files():
                answer = requests.post(f"{self.orthanc_url}/instances", data=content, timeout=30)
                answer.raise_for_status()
            self.check()
        except OSError as error:  # of requests too
            if is_full_disk(error):
                raise
            raise StackFailure(f"Orthanc could not be brought to its known store: {error}") from error

    def check(self) -> None:
        """Compare what Orthanc holds with what it must hold after a reset.

        Raises:
            StackFailure: what differs.
        """
        found = self.describe_store()
        differing = {key: found[key] for key, value in build_expected_store().items() if found[key] != value}
        if differing:
            raise StackFailure(f"Orthanc is not in its known state; found {json.dumps(differing)[:500]}")

    def describe_store(self) -> dict[str, Any]:
        """Say what Orthanc holds: instances, protected patients, jobs, queries, targets."""
        protected = [patient for patient in self.get("/patients") if self.get(f"/patients/{patient}/protected")]
        return {
            "instances": sorted(self.get("/instances")),
            "protected": protected,
            "jobs": self.get("/jobs"),
            "queries": self.get("/queries"),
            "modalities": sorted(self.get("/modalities")),
        }

    def get(self, path: str) -> Any:
        """Read one address of Orthanc's REST interface; raise `StackFailure` where it does not answer."""
        try:
            answer = requests.get(f"{self.orthanc_url}{path}", timeout=20)
            answer.raise_for_status()
            return answer.json()
        except requests.RequestException as error:
            raise StackFailure(f"Orthanc does not answer: {error}") from error

    def _start_orthanc(self) -> None:
        targets = {name: [aet, "127.0.0.1", self.peer_port] for name, aet in MODALITIES.items()}
        config = {
            "Name": "Demo hospital",
            "StorageDirectory": str(self.folder / "store"),
            "IndexDirectory": str(self.folder / "store"),
            "Plugins": [DICOMWEB_PLUGIN],
            "HttpPort": self.orthanc_port,
            # Orthanc 1.10 listens on every interface; what does not come from this machine is refused.
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomModalities": targets,
            "DicomCheckModalityHost": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "ConcurrentJobs": 1,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(config))
        process = self._start_process("orthanc", ["Orthanc", str(path)], [self.orthanc_port, self.dicom_port])
        self._wait_for("orthanc", process, lambda: requests.get(f"{self.orthanc_url}/system", timeout=2).ok)

    def _start_nginx(self) -> None:
        (self.folder / "app-config.js").write_text(APP_CONFIG)
        path = self.folder / "nginx.conf"
        path.write_text(
            NGINX_CONFIG.format(
                folder=self.folder,
                ohif_dist=self.ohif_dist,
                ohif_port=self.ohif_port,
                orthanc_port=self.orthanc_port,
            )
        )
        command = [_find_program("nginx"), "-c", str(path), "-e", str(self.folder / "nginx.log")]
        command += ["-g", "user root;"] if os.geteuid() == 0 else []
        process = self._start_process("nginx", command, [self.ohif_port])
        self._wait_for("nginx", process, lambda: requests.get(f"{self.ohif_url}/app-config.js", timeout=2).ok)

    def _start_peer(self) -> None:
        command = [sys.executable, "-m", "demo.clinic.peer", "--port", str(self.peer_port)]
        command += ["--destination", f"ORTHANC={self.dicom_port}", "--received", str(self.received)]
        process = self._start_process("peer", [*command, *map(str, find_files(PEER_FILES))], [self.peer_port])
        self._wait_for("peer", process, lambda: _is_listening(self.peer_port))

    def _start_process(self, name: str, command: list[str], ports: list[int]) -> subprocess.Popen:
        self._end_orphans(name)
        deadline = time.monotonic() + 2  # what was killed just now may still hold one
        while (taken := [port for port in ports if _is_listening(port)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        if taken:
            raise StackFailure(f"port {taken[0]} is in use; CLINIC_PORT_BASE names the first of four free ones")
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        self._children.append(process)
        (self.folder / f"{name}.pid").write_text(str(process.pid))
        return process

    def _wait_for(self, name: str, process: subprocess.Popen, is_ready: Callable[[], bool]) -> None:
        """Wait until a program answers; raise with its log when it ends or never does."""
        deadline = time.monotonic() + STARTUP_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if is_ready():
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        log = (self.folder / f"{name}.log").read_text(errors="replace")[-1500:]
        raise StackFailure(f"{name} does not start: {log}")

    def _find_pid(self, name: str) -> int | None:
        """Look up the process that was started as `name`, unless it has ended or its number is another's now."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.folder).encode() in command else None

    def _end_orphans(self, name: str) -> None:
        """End what a process that was killed has left behind: nginx's workers hold its port."""
        try:
            group = int((self.folder / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return
        for path in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                if path.read_text().strip() == "nginx" and os.getpgid(int(path.parent.name)) == group:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def _stop_process(self, name: str, number: int = signal.SIGTERM) -> bool:
        pid = self._find_pid(name)
        if pid is None:
            return False
        for asked in (number, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, asked)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                for child in self._children:
                    child.poll()  # else it stays as a zombie
                if self._find_pid(name) is None:
                    (self.folder / f"{name}.pid").unlink(missing_ok=True)
                    return True
                time.sleep(0.02)
        raise StackFailure(f"{name} (process {pid}) cannot be stopped")


def build_expected_store() -> dict[str, Any]:
    """Say what `Stack.describe_store` finds after a reset."""
    return {
        "instances": list_instances(),
        "protected": [],
        "jobs": [],
        "queries": [],
        "modalities": sorted(MODALITIES),
    }


def _find_program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["start", "stop"])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the programs keep their state")
    parser.add_argument("--port_base", type=int, default=PORT_BASE, help="first of four ports on 127.0.0.1")
    args = parser.parse_args()
    stack = Stack(args.folder, port_base=args.port_base)
    if args.command == "stop":
        print(f"stopped: {', '.join(stack.stop()) or 'nothing ran'}")
        return
    try:
        started = stack.start()
    except StackFailure as failure:
        stack.stop()
        sys.exit(f"error: {failure}")
    print(f"started: {', '.join(started)}" if started else "runs already")
    print(f"Orthanc {stack.orthanc_url}/app/explorer.html\nOHIF    {stack.ohif_url}")
    print(f"peer    127.0.0.1:{stack.peer_port} (DICOM)")


if __name__ == "__main__":
    main()
