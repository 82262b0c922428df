"""Machines for the tests of the packages: Debian 12 in systemd-nspawn, each with systemd as its first process, on one network of their own.

A machine's root is an overlay on a base that debootstrap makes once and that stays in the cache. Its network namespace is made again at
each of its starts, so that a restart loses the kernel's nftables as a restart of hardware does. Its network interface is down until a unit
of the machine, ordered after network-pre.target, brings it up.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = "bookworm"
INCLUDE = "systemd,systemd-sysv,dbus,openssh-server,nftables,iproute2,ca-certificates,procps,rpm,man-db,libpam-systemd,ufw,firewalld"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "postern-system"
# The longest that a machine may take to start or to stop.
PATIENCE = 300
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def run(*command, **options):
    """Runs a command of this machine; fails with all that it wrote."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def base():
    """Returns the root that all machines share, and makes it if it is not in the cache."""
    key = hashlib.sha256(f"{SUITE} {INCLUDE}".encode()).hexdigest()[:12]
    place = CACHE / f"{SUITE}-{key}"
    if not place.exists():
        print(f"making a root with debootstrap in {place}: some minutes, once", file=sys.stderr)
        CACHE.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
        try:
            run("debootstrap", "--variant=minbase", f"--include={INCLUDE}", SUITE, new)
        except AssertionError:
            shutil.rmtree(new)
            raise
        new.chmod(0o755)
        new.rename(place)
    return place


class Network:
    """A bridge in a namespace of its own, and namespaces whose interface `lan0` is on it."""

    def __init__(self):
        self.names = []
        self.bridge = self._namespace("bridge")
        self._ip(self.bridge, "link", "add", "lan", "type", "bridge")
        self._ip(self.bridge, "link", "set", "lan", "up")

    def _namespace(self, name):
        full = f"postern-sys-{os.getpid()}-{name}"
        run("ip", "netns", "add", full)
        self.names.append(full)
        return full

    @staticmethod
    def _ip(namespace, *arguments):
        run("ip", "-n", namespace, *arguments)

    def host(self, name, address):
        """Returns the namespace of a host that is up at once."""
        namespace = self.attached(name)
        self._ip(namespace, "addr", "add", f"{address}/24", "dev", "lan0")
        for device in ("lo", "lan0"):
            self._ip(namespace, "link", "set", device, "up")
        return namespace

    def attached(self, name):
        """Returns a new namespace with `lan0` down; one of that name goes first."""
        full = f"postern-sys-{os.getpid()}-{name}"
        if full in self.names:
            # The cable goes first: a namespace that ends loses its rules before its interface, and would answer in between.
            self._ip(self.bridge, "link", "set", name, "down")
            run("ip", "netns", "delete", full)
            self.names.remove(full)
            # Its end of the cable goes with it, a moment later.
            while name in run("ip", "-n", self.bridge, "-o", "link"):
                time.sleep(0.05)
        namespace = self._namespace(name)
        self._ip(self.bridge, "link", "add", name, "type", "veth", "peer", "name", "lan0", "netns", namespace)
        self._ip(self.bridge, "link", "set", name, "master", "lan", "up")
        return namespace

    def remove(self):
        for name in reversed(self.names):
            subprocess.run(["ip", "netns", "delete", name], check=False)


class Machine:
    """A machine at an address of the network."""

    def __init__(self, network, name, address, place):
        self.network, self.name, self.address = network, name, address
        self.place = Path(place) / name
        self.root = self.place / "root"
        self.nspawn = None
        self.leader = None
        for part in ("upper", "work", "root"):
            (self.place / part).mkdir(parents=True)
        options = f"lowerdir={base()},upperdir={self.place}/upper,workdir={self.place}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, self.root)
        # Firewalls start where a test starts them.
        run("systemctl", f"--root={self.root}", "disable", "nftables", "ufw", "firewalld")
        self.write("/etc/hostname", name + "\n")
        self.write("/etc/machine-id", "")
        self.write(
            "/etc/systemd/system/lan.service",
            "[Unit]\nDescription=The network\nDefaultDependencies=no\nWants=network-pre.target network.target network-online.target\n"
            "After=network-pre.target\nBefore=network.target network-online.target\n"
            "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
            f"ExecStart=ip link set lo up\nExecStart=ip addr add {address}/24 dev lan0\nExecStart=ip link set lan0 up\n"
            "[Install]\nWantedBy=multi-user.target\n",
        )
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / "lan.service").symlink_to("/etc/systemd/system/lan.service")

    def write(self, path, text, mode=0o644):
        """Writes a file of the machine."""
        file = Path(str(self.root) + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def put(self, source, path):
        """Copies a file into the machine."""
        file = Path(str(self.root) + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, file)

    def read(self, path):
        return Path(str(self.root) + path).read_text()

    def has(self, path):
        return os.path.lexists(str(self.root) + path)

    def start(self):
        """Starts the machine, and waits until systemd has started everything."""
        namespace = self.network.attached(self.name)
        with open(self.place / "console", "ab") as log:
            self._spawn(namespace, log)
        self.wait("systemd runs", self._find_leader)
        self.wait("the machine has started", lambda: self.ask("systemctl", "is-system-running").strip() in ("running", "degraded"))

    def _spawn(self, namespace, log):
        # The namespace is handed in, so that the capability has to be named; this machine's own first process may not be systemd.
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", self.root, f"--machine=postern-{os.getpid()}-{self.name}", "--boot", "--register=no", "--keep-unit",
             "--capability=CAP_NET_ADMIN", f"--network-namespace-path=/run/netns/{namespace}", "--console=pipe", "--resolv-conf=off",
             "--timezone=off", "--link-journal=no"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _find_leader(self):
        if self.nspawn.poll() is not None:
            raise AssertionError(f"the machine {self.name} ended:\n{self.console()}")
        children = subprocess.run(["pgrep", "-P", str(self.nspawn.pid)], text=True, capture_output=True, check=False).stdout.split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                self.leader = child
                return self.ask("systemctl", "is-system-running").strip() not in ("", "offline")
        return False

    def console(self):
        return (self.place / "console").read_text(errors="replace")[-4000:]

    def wait(self, what, condition):
        """Waits until the condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{self.name}: not within {PATIENCE} s: {what}\n{self.console()}")
            time.sleep(0.1)

    def command(self, *command):
        """Returns the command of this machine that runs a command in the machine."""
        settings = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
        return ["nsenter", "-t", self.leader, "-m", "-u", "-i", "-n", "-p", "env", "-i", *settings, *command]

    def ask(self, *command):
        """Runs a command in the machine, and returns what it wrote, whatever came of it."""
        done = subprocess.run(self.command(*command), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.stdout

    def must(self, *command, **options):
        """Runs a command in the machine; it has to succeed."""
        return run(*self.command(*command), **options)

    def can(self, *command):
        """Reports whether a command in the machine succeeds."""
        return subprocess.run(self.command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def reboot(self):
        """Restarts the machine as its administrator would."""
        self.ask("systemctl", "reboot")
        self.nspawn.wait(PATIENCE)
        self.start()

    def remove(self):
        if self.nspawn is not None and self.nspawn.poll() is None:
            if self.leader is not None:
                # As reboot(8) has it: systemd powers off at this signal.
                os.kill(int(self.leader), signal.SIGRTMIN + 4)
            try:
                self.nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()
        subprocess.run(["umount", "-l", self.root], check=False)
