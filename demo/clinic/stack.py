"""The clinical software that is recorded: Orthanc, OHIF behind nginx, and a DICOM peer, all on 127.0.0.1.

    python -m demo.clinic.stack --ohif_dist package/dist [--port_base 8100]

starts everything, prints the addresses and waits for Ctrl-C. Debian's `orthanc`, `orthanc-dicomweb` and `nginx-light`,
and the unpacked npm package `@ohif/app` are needed. Knows nothing of browsers.
"""

import argparse
import io
import json
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pydicom
import pydicom.data
import requests

from demo.clinic.peer import Peer

SAMPLES = Path(pydicom.data.__file__).parent
# Read by Orthanc and by OHIF. Left out: files without Modality (OHIF's study list crashes), what OHIF cannot draw
# (JXD191021006, nuclear medicine, structured reports), and second copies of the same SOP instance.
STORE_FILES = [
    "test_files/693_J2KI.dcm",
    "test_files/CT_small.dcm",
    "test_files/MR_small.dcm",
    "test_files/examples_jpeg2k.dcm",
    "test_files/examples_rgb_color.dcm",
    "test_files/examples_overlay.dcm",
    "test_files/examples_palette.dcm",
    "test_files/examples_ybr_color.dcm",
    "test_files/SC_rgb_jpeg_gdcm.dcm",
    "test_files/rtplan.dcm",
    "charset_files/chrFren.dcm",
    "charset_files/chrGerm.dcm",
    "test_files/dicomdirtests/77654033",
    "test_files/dicomdirtests/98892001",
    "test_files/dicomdirtests/98892003",
]
# Only the peer has these, so that a query finds something that Orthanc does not hold yet.
PEER_FILES = [
    "test_files/JPEG2000.dcm",
    "test_files/rtdose.dcm",
    "test_files/liver_1frame.dcm",
    "test_files/waveform_ecg.dcm",
    "test_files/examples_overlay.dcm",
    "test_files/CT_small.dcm",
]
PEER_NAME, PEER_AET = "remote-pacs", "REMOTEPACS"
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


def find_files(names: list[str]) -> list[Path]:
    """List pydicom's sample files for names that are files or folders under its data folder."""
    paths = []
    for name in names:
        path = SAMPLES / name
        paths += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return paths


def load_without_overlay(path: Path) -> bytes:
    """Load a DICOM file without its overlay planes (groups 60xx).

    OHIF 3.12.10 raises an error on the overlay of examples_overlay.dcm and then draws no measurement on it either.
    """
    dataset = pydicom.dcmread(path)
    overlay = [element.tag for element in dataset if 0x6000 <= element.tag.group <= 0x60FF]
    if not overlay:
        return path.read_bytes()
    for tag in overlay:
        del dataset[tag]
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


class Stack:
    """Orthanc, nginx with OHIF, and the peer; a context manager.

    Args:
        ohif_dist: folder of the built OHIF application; None leaves nginx out.
        port_base: Orthanc's web port; the next three are Orthanc's DICOM port, OHIF's and the peer's.
    """

    def __init__(self, ohif_dist: Path | None, port_base: int = 8100):
        self.ohif_dist = ohif_dist
        self.orthanc_port, self.dicom_port, self.ohif_port, self.peer_port = range(port_base, port_base + 4)
        self.orthanc_url = f"http://127.0.0.1:{self.orthanc_port}"
        self.ohif_url = f"http://127.0.0.1:{self.ohif_port}"

    def __enter__(self) -> "Stack":
        signal.signal(signal.SIGTERM, exit_on_signal)  # so that `kill` leaves no server behind
        self.folder = Path(tempfile.mkdtemp(prefix="capture_stack_"))
        self.orthanc = self.nginx = None
        self.peer = Peer(find_files(PEER_FILES), PEER_AET, self.peer_port, {"ORTHANC": self.dicom_port})
        self.peer.start()
        self.reset()
        if self.ohif_dist:
            self._start_nginx()
        return self

    def __exit__(self, *error) -> None:
        self.peer.stop()
        for process in (self.nginx, self.orthanc):
            if process:
                stop(process)
        shutil.rmtree(self.folder)

    def reset(self) -> None:
        """Bring Orthanc to its known store: a new process on an empty folder, then the sample files in fixed order."""
        if self.orthanc:
            stop(self.orthanc)
            shutil.rmtree(self.folder / "store")
        self._start_orthanc()
        for path in find_files(STORE_FILES):
            answer = requests.post(f"{self.orthanc_url}/instances", data=load_without_overlay(path), timeout=30)
            answer.raise_for_status()

    def _start_orthanc(self) -> None:
        config = {
            "Name": "Demo hospital",
            "StorageDirectory": str(self.folder / "store"),
            "IndexDirectory": str(self.folder / "store"),
            "Plugins": [DICOMWEB_PLUGIN],
            "HttpPort": self.orthanc_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomModalities": {PEER_NAME: [PEER_AET, "127.0.0.1", self.peer_port]},
            "ConcurrentJobs": 1,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(config))
        log = (self.folder / "orthanc.log").open("ab")
        self.orthanc = subprocess.Popen(["Orthanc", str(path)], stdout=log, stderr=log, start_new_session=True)
        wait_for(f"{self.orthanc_url}/system", self.orthanc, self.folder / "orthanc.log")

    def _start_nginx(self) -> None:
        if not (self.ohif_dist / "index.html").is_file():
            raise ValueError(f"{self.ohif_dist}: expected OHIF's built application (index.html); npm pack @ohif/app")
        (self.folder / "app-config.js").write_text(APP_CONFIG)
        path = self.folder / "nginx.conf"
        path.write_text(
            NGINX_CONFIG.format(
                folder=self.folder,
                ohif_dist=self.ohif_dist.resolve(),
                ohif_port=self.ohif_port,
                orthanc_port=self.orthanc_port,
            )
        )
        self.folder.chmod(0o755)
        command = ["nginx", "-c", str(path), "-e", str(self.folder / "nginx.log"), "-g", "user root;"]
        self.nginx = subprocess.Popen(command, start_new_session=True)
        wait_for(f"{self.ohif_url}/app-config.js", self.nginx, self.folder / "nginx.log")


def exit_on_signal(number: int, frame: object) -> None:
    """Turn a signal into an ordinary exit, which leaves every context manager."""
    raise SystemExit(128 + number)


def stop(process: subprocess.Popen) -> None:
    """Ask a process to end, and wait until it has."""
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen, log: Path, timeout_s: float = 60) -> None:
    """Wait until a server answers; raise with its log when it ends or never does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(url, timeout=2).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ohif_dist", type=Path, help="folder of OHIF's built application; without it, Orthanc only")
    parser.add_argument("--port_base", type=int, default=8100, help="first of four ports on 127.0.0.1")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, exit_on_signal)
    with Stack(args.ohif_dist, args.port_base) as stack:
        ohif = stack.ohif_url if args.ohif_dist else "-"
        print(f"Orthanc {stack.orthanc_url}/app/explorer.html  OHIF {ohif}  (Ctrl-C ends)", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
