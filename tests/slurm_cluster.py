"""Slurm clusters on this machine, each in a folder of its own: what the tests of the Slurm jobs run on."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SchedulerParameters=batch_sched_delay=1,sched_interval=2,preempt_send_user_signal
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
# Gives a namespace its host name and /etc/hosts, the second one its end of the cable too; then it is a node.
ENTER_NODE = """\
hostname "$1" && mount --bind "$2" /etc/hosts || exit
if [ $# -eq 4 ]; then
    until ip address add "$4" dev "$3" 2>/dev/null; do sleep 0.1; done
    ip link set lo up && ip link set "$3" up || exit
fi
exec slurmd -D
"""


def find_missing():
    """Return why no cluster can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"found no {', '.join(missing)}; Debian has them in slurmctld, slurmd, slurm-client, munge"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root only"


def find_missing_for_two_nodes():
    """Return why no second node can be made here, or None."""
    if missing := find_missing():
        return missing
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "found no unshare or ip; Debian has them in util-linux, iproute2"
    made = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "ip", "link", "add", "type", "veth"], capture_output=True, text=True
    )
    return f"namespaces cannot be made here: {made.stderr.strip()}" if made.returncode else None


def find_free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


@contextmanager
def start_cluster(folder, n_nodes=1):
    """Start the daemons and give the environment that its clients need; end them by their process ids.

    Two nodes are two hosts to each other: each in namespaces with its own host name and /etc/hosts, the second with a
    network stack of its own as well, so that nothing that one says to itself on the loopback reaches the other.
    """
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(folder / "slurm.conf")}
    host = socket.gethostname().split(".")[0]
    ports = find_free_ports(2)
    network = f"198.18.{ports[0] >> 8}"  # of the range for tests (RFC 2544), another one for each cluster
    nodes = {f"node{i}": f"{network}.{i}" for i in range(1, n_nodes + 1)} if n_nodes > 1 else {host: "127.0.0.1"}
    address = next(iter(nodes.values()))
    lines = [
        f"NodeName={name} NodeAddr={at} CPUs={os.cpu_count()} Gres=gpu:{os.cpu_count()} State=UNKNOWN"
        for name, at in nodes.items()
    ]
    config = {"host": host, "address": address, "controller_port": ports[0], "node_port": ports[1]}
    (folder / "slurm.conf").write_text(CONFIG.format(**config, folder=folder, nodes="\n".join(lines)))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[1-{os.cpu_count()}]\n")
    for i in range(1, os.cpu_count() + 1):
        (folder / f"gpu{i}").touch()
    (folder / "hosts").write_text(
        "".join(f"{at} {name}\n" for name, at in {"localhost": "127.0.0.1", **nodes}.items())
    )
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    daemons = []

    def start(*command):
        with (folder / f"{command[0]}-{len(daemons)}.out").open("w") as output:
            daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
        return daemons[-1].pid

    try:
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        start("munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *files)
        if n_nodes == 1:
            start("slurmd", "-D")
        else:
            start_nodes(start, nodes, folder / "hosts", f"sl{ports[0]}")
        time.sleep(1)
        start("slurmctld", "-D")
        time.sleep(1)
        count_idle = ("sinfo", "--noheader", "--partition=low", "--states=idle", "--format=%D")
        wait_until(lambda: run_client(environment, *count_idle).strip() == str(n_nodes), "idle nodes", 60)
        yield environment
    finally:
        for options in (["--state=PENDING"], ["--full", "--signal=KILL"]):
            subprocess.run(["scancel", "--user=root", *options], env=environment, timeout=60)
        with suppress(AssertionError):
            wait_until(lambda: not run_client(environment, "squeue", "--noheader"), "the jobs' ends", 30)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def start_nodes(start, nodes, hosts, cable):
    """Start a daemon in the namespaces of each of two nodes; the cable between them goes with the second."""
    (first, first_address), (second, second_address) = nodes.items()
    run = ["bash", "-c", ENTER_NODE, "node"]
    process = start("unshare", "--net", "--uts", "--mount", *run, second, str(hosts), cable, f"{second_address}/24")
    spaces = Path("/proc/self/ns/net"), Path(f"/proc/{process}/ns/net")
    wait_until(lambda: spaces[0].readlink() != spaces[1].readlink(), "the second node's namespace", 30)
    ends = ["ip", "link", "add", f"{cable}a", "type", "veth", "peer", "name", cable, "netns", str(process)]
    subprocess.run(ends, check=True)
    subprocess.run(["ip", "address", "add", f"{first_address}/24", "dev", f"{cable}a"], check=True)
    subprocess.run(["ip", "link", "set", f"{cable}a", "up"], check=True)
    start("unshare", "--uts", "--mount", *run, first, str(hosts))


def run_client(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def read_job(environment, job):
    """Return the fields that Slurm shows of a job."""
    shown = run_client(environment, "scontrol", "show", "job", job, "--oneliner")
    return dict(field.split("=", 1) for field in shown.split() if "=" in field)


def submit(cluster, *arguments):
    return run_client(cluster, "sbatch", "--parsable", *map(str, arguments)).strip()


@contextmanager
def hold_training(folder):
    """Stop the training processes that write to a folder, however fast they are; they go on once one is signalled."""
    commands = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    processes = [
        process
        for process, command in commands.items()
        if str(folder).encode() in command and b"\0sft/run.py\0" in command and b"launch" not in command
    ]
    assert processes, f"found no training in {folder}"
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
        wait_until(lambda: any(map(is_signalled, processes)), "the signal", 120)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def is_signalled(process):
    """Return whether a stopped process has SIGUSR1 before it, as launch.sh sends it, or has gone on and ended."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(fields["ShdPnd"], 16) >> (signal.SIGUSR1 - 1) & 1)


def warn(cluster, job, folder):
    """Send what Slurm sends before the time limit, and see it reach the training."""
    with hold_training(folder):
        run_client(cluster, "scancel", "--batch", "--signal=USR1", job)


def preempt(cluster, job, folder, *options):
    """Submit a job of the higher partition that takes the training's nodes, and see the signal reach the training."""
    with hold_training(folder):
        submit(cluster, "--partition=high", "--exclusive", *options, "--output=/dev/null", "--wrap=sleep 1")


def wait_for_restart(cluster, job, n):
    """Wait until the job is in the queue again, and have it start soon; Slurm delays a requeued job for minutes.

    Not within the second of the requeue: slurmd would take it for the job it has just killed, and fail it.
    """

    def is_queued():
        shown = read_job(cluster, job)
        return shown["Restarts"] == str(n) and shown["JobState"] == "PENDING"

    wait_until(is_queued, f"restart {n}")
    soon = ["scontrol", "update", f"jobid={job}", "StartTime=now+2"]  # refused as long as the job's processes end
    wait_until(lambda: subprocess.run(soon, env=cluster, capture_output=True).returncode == 0, f"restart {n}")


def wait_for_end(cluster, job, log):
    wait_until(lambda: has_ended(cluster, job), "the end")
    assert read_job(cluster, job)["JobState"] == "COMPLETED", read_log(log)


def wait_for_step(cluster, job, folder, step, log):
    """Wait until the first process has logged the end of this step or a later one."""
    steps = folder / "logs/rank-0.log"

    def has_done():
        done = re.findall(r"step (\d+) done", steps.read_text()) if steps.is_file() else []
        is_done = any(int(number) >= step for number in done)
        assert is_done or not has_ended(cluster, job), f"ended before step {step}: {read_log(log)}"
        return is_done

    wait_until(has_done, f"step {step}")


def has_ended(cluster, job):
    return read_job(cluster, job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def read_log(path):
    """Return what a job printed; Slurm may cut between the bytes of a progress bar's character."""
    return path.read_text(errors="replace")


def wait_until(is_so, what, limit_s=600):
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < limit_s, f"waited {limit_s} s for {what}"
        time.sleep(0.3)
