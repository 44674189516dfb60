"""A Slurm cluster of one node, this machine, in a folder of its own: what the tests of the Slurm jobs run on."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SchedulerParameters=batch_sched_delay=1,sched_interval=2,preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def find_missing():
    """Return why no cluster can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"found no {', '.join(missing)}; Debian has them in slurmctld, slurmd, slurm-client, munge"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root only"


@contextmanager
def start_cluster(folder):
    """Start the daemons and give the environment that its clients need; end them by their process ids."""
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(folder / "slurm.conf")}
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    config = {"host": socket.gethostname().split(".")[0], "controller_port": ports[0], "node_port": ports[1]}
    (folder / "slurm.conf").write_text(CONFIG.format(**config, folder=folder, cpus=os.cpu_count()))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("w") as output:
                daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            time.sleep(1)
        wait_until(lambda: "idle" in run_client(environment, "sinfo", "--noheader"), "an idle node")
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=60)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def run_client(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def read_job(environment, job):
    """Return the fields that Slurm shows of a job."""
    shown = run_client(environment, "scontrol", "show", "job", job, "--oneliner")
    return dict(field.split("=", 1) for field in shown.split() if "=" in field)


def wait_until(is_so, what, limit_s=600):
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < limit_s, f"waited {limit_s} s for {what}"
        time.sleep(0.3)
