"""A real SLURM of one node, for one test module: munged, slurmctld and slurmd, on files, keys and ports of their own.

Nothing outside one temporary folder is read or written, so a SLURM that the machine may have is left in peace. There
is no accounting, as on many small clusters. The node says that it has GPUs, so that asking for them can be tried; no
device is behind them.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge"  # as Debian and Ubuntu call them
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} Gres=gpu:2 RealMemory=100000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
SlurmdParameters=config_overrides
"""


def missing() -> list[str]:
    """Programs that are not installed; those of a daemon lie in sbin."""
    return [name for name in PROGRAMS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


@dataclass(frozen=True)
class Slurm:
    """A cluster that is up.

    Attributes:
        folder: its configuration, state and logs.
        environment: what its clients need beside the usual environment.
    """

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a client of it says; empty if it fails."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def logs(self) -> str:
        """The ends of what its daemons wrote."""
        found = sorted(path for path in self.folder.iterdir() if path.suffix in (".log", ".said"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in found)


@contextlib.contextmanager
def one_node(cores: int = 2) -> Iterator[Slurm]:
    """SLURM with room for `cores` jobs at once, whatever the machine has, while the context lasts."""
    # Not pytest's own folder: these daemons want one that others may enter.
    folder = Path(tempfile.mkdtemp(prefix="one-node-slurm-"))
    folder.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    slurm = Slurm(folder, {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path})
    daemons: dict[str, subprocess.Popen[bytes]] = {}

    def begin(name: str, *options: str) -> None:
        program = _program(name)
        assert program is not None, name
        with open(folder / f"{name}.said", "wb") as said:
            daemons[name] = subprocess.Popen(
                [program, *options], stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )

    def wait(what: str, is_there: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not is_there():
            ended = [name for name, process in daemons.items() if process.poll() is not None]
            if ended or time.monotonic() > until:
                raise RuntimeError(f"no {what}; ended by themselves: {', '.join(ended) or 'none'}\n{slurm.logs()}")
            time.sleep(0.1)

    try:
        _configure(folder, cores)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        begin("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        wait("socket of munged", (folder / "munge.socket").is_socket)
        begin("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        begin("slurmd", "-D", "-f", str(folder / "slurm.conf"))
        wait("idle node", lambda: slurm.ask("sinfo", "-h", "-o", "%T") == "idle")
        yield slurm
    finally:
        # Jobs are not children of slurmd: they would outlive it.
        if "slurmd" in daemons:
            slurm.ask("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
            until = time.monotonic() + 20
            while slurm.ask("squeue", "-h") and time.monotonic() < until:
                time.sleep(0.2)
        for process in reversed(daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, cores: int) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    # The engine's plugin takes SLURM_CONF from what a job inherits: clusters have their configuration in /etc.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {_program("srun")} "$@"\n')
    srun.chmod(0o755)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = {"controller": one.getsockname()[1], "daemon": other.getsockname()[1]}
    host = socket.gethostname().split(".")[0]
    told = CONFIG.format(host=host, folder=folder, user=getpass.getuser(), cores=cores, **ports)
    (folder / "slurm.conf").write_text(told.lstrip())
    # It takes any device for one; that these two are none is nothing that a job here finds out.
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    # Newer daemons look for systemd, which containers do not have.
    (folder / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
