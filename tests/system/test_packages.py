#!/usr/bin/env python3
"""The packages, as an administrator meets them, on real machines: installation, enrolment, a window, a restart with the window open, an agent
that is killed and one that hangs, an upgrade under an open session, other firewalls beside, a downgrade, removal and purge.
`make test-system` runs it; it needs root and the packages of `make packages`.

Beside every step a prober connects to the protected port every 20 ms from an address that no policy allows. Its log is the evidence: after
the machine is protected, no attempt gets through until the administrator purges the package.

The tests are one story on the same two machines, in the order of their numbers.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from machines import PATIENCE, Machine, Network, run  # noqa: E402

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
PACKAGES = Path(os.environ.get("POSTERN_PACKAGES", TOP / "target/packages"))
PROBER = HERE / "prober.py"

BROKER, VM, ALICE, MALLORY = "10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4"
TABLE = ("nft", "list", "table", "inet", "postern")

POLICY = """
[[policy]]
name = "vm"
targets = ["host:vm"]

[[policy.ports]]
port = "tcp/22"
sources = ["10.77.0.3/32"]
max_duration = "3h"
"""


def package(name):
    """Returns the .deb of a package."""
    found = sorted(PACKAGES.glob(f"{name}_*_amd64.deb"))
    if len(found) != 1:
        raise AssertionError(f"{len(found)} files {name}_*_amd64.deb in {PACKAGES}; run `make packages` first")
    return found[0]


def older(deb, place):
    """Returns the same package with a lower version, as a release before this one would have it."""
    tree = Path(place) / f"older-{deb.name}"
    run("dpkg-deb", "--raw-extract", deb, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 0.0.9-1", control.read_text()))
    built = Path(place) / deb.name.replace("_", "-older_", 1)
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, built)
    shutil.rmtree(tree)
    return built


class Session:
    """An ssh session of alice that writes the time every 100 ms."""

    def __init__(self, namespace, key):
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "ssh", "-q", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "ConnectTimeout=10", f"root@{VM}", "while sleep 0.1; do date +%s.%N; done"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        first = self.process.stdout.readline()
        if not re.match(r"\d+\.\d+$", first):
            raise AssertionError(f"alice cannot log in: {first}{self.process.stdout.read()}")

    def beats(self, number):
        """Waits until the session has written so many times."""
        for _ in range(number):
            line = self.process.stdout.readline()
            if not re.match(r"\d+\.\d+$", line):
                raise AssertionError(f"the session was cut: {line}")

    def end(self):
        """Ends the session, and returns the longest silence in seconds with the number of times since the last wait. Fails if the session was
        cut before."""
        if self.process.poll() is not None:
            self.process.stdout.close()
            raise AssertionError("the session was cut")
        self.process.terminate()
        times = [float(line) for line in self.process.stdout if re.match(r"\d+\.\d+$", line)]
        self.process.stdout.close()
        self.process.wait()
        return max((later - before for before, later in zip(times, times[1:])), default=0.0), len(times)


class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.place = tempfile.mkdtemp(prefix="postern-system-", dir=os.environ.get("TMPDIR", "/var/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.place, True)
        cls.network = Network()
        cls.addClassCleanup(cls.network.remove)
        cls.alice = cls.network.host("alice", ALICE)
        cls.mallory = cls.network.host("mallory", MALLORY)
        cls.key = f"{cls.place}/alice"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", cls.key)
        cls.gate = Machine(cls.network, "gate", BROKER, cls.place)
        cls.addClassCleanup(cls.gate.remove)
        cls.vm = Machine(cls.network, "vm", VM, cls.place)
        cls.addClassCleanup(cls.vm.remove)
        cls.vm.write("/root/.ssh/authorized_keys", Path(cls.key + ".pub").read_text(), 0o600)
        for machine, names in ((cls.gate, ["postern-broker", "postern"]), (cls.vm, ["postern-agent"])):
            for name in names:
                machine.put(package(name), f"/root/{name}.deb")
                machine.put(older(package(name), cls.place), f"/root/{name}-older.deb")
            machine.start()
        cls.log = Path(cls.place) / "prober.log"
        prober = subprocess.Popen(["ip", "netns", "exec", cls.mallory, sys.executable, PROBER, VM, "22", cls.log])
        cls.addClassCleanup(prober.wait)
        cls.addClassCleanup(prober.kill)
        cls.evidence = []
        cls.addClassCleanup(cls.report)

    @classmethod
    def report(cls):
        print("\nprober: attempts of 10.77.0.4 on tcp/22 every 20 ms, by step")
        for line in cls.evidence:
            print("  " + line)

    def setUp(self):
        self.began = time.time()

    def attempts(self, since):
        """Returns the prober's attempts since then as pairs of time and outcome, once there are some and the last ones are decided."""
        end = time.monotonic() + PATIENCE
        while True:
            now = time.time()
            time.sleep(0.6)
            # The last line may not be whole yet.
            lines = [line.split() for line in self.log.read_text().rpartition("\n")[0].splitlines()]
            found = sorted((float(at), outcome) for at, outcome in lines if float(at) >= since)
            if len(found) >= 10 and found[-1][0] >= now:
                return found
            if time.monotonic() > end:
                raise AssertionError(f"the prober made {len(found)} attempts; it does not run")

    def shut(self, step, since=None):
        """No attempt has got through since the step began, and the prober saw the port all the time."""
        found = self.attempts(since or self.began)
        through = [(at, outcome) for at, outcome in found if outcome in ("open", "refused")]
        gap = max((later[0] - before[0] for before, later in zip(found, found[1:])), default=0.0)
        unsent = sum(outcome == "unsent" for _, outcome in found)
        self.evidence.append(
            f"{step}: {len(found)} attempts in {found[-1][0] - found[0][0]:.1f} s, {len(through)} got through, {unsent} not sent, "
            f"longest time between two: {gap * 1000:.0f} ms")
        self.assertEqual(through, [], f"{step}: attempts got through")

    def postern(self, *arguments):
        identity = ("POSTERN_BROKER=https://10.77.0.1:7443", "POSTERN_IDENTITY=/var/lib/postern-broker/admin")
        return self.gate.must("env", *identity, "postern", *arguments)

    def main_pid(self, unit):
        return self.vm.ask("systemctl", "show", unit, "-p", "MainPID", "--value").strip()

    def agent_is_connected(self):
        return '"in_sync"' in self.postern("targets", "host:vm", "--output", "json")

    def test_01_an_installation_changes_nothing(self):
        before = self.vm.ask("nft", "list", "ruleset")
        type(self).installed = time.time()
        said = self.vm.must("dpkg", "-i", "/root/postern-agent-older.deb")
        self.assertIn("nothing is protected yet", said)
        self.assertEqual(self.vm.ask("nft", "list", "ruleset"), before)
        for unit in ("postern-agent", "postern-agent-boot"):
            self.assertEqual(self.vm.ask("systemctl", "is-enabled", unit).strip(), "enabled")
            self.assertEqual(self.vm.ask("systemctl", "is-active", unit).strip(), "inactive")
        self.assertEqual(self.vm.ask("systemctl", "--failed", "--no-legend").strip(), "")
        self.assertEqual({outcome for _, outcome in self.attempts(time.time())}, {"open"})
        self.assertIn("postern-agent", self.vm.must("man", "-w", "postern-agent"))

    def test_02_a_broker_is_set_up_as_its_package_says(self):
        self.gate.must("dpkg", "-i", "/root/postern-broker-older.deb", "/root/postern-older.deb")
        example = self.gate.read("/usr/share/doc/postern-broker/examples/broker.toml")
        self.gate.write("/etc/postern/broker.toml", example.replace("broker.example.org", BROKER))
        self.gate.must("runuser", "-u", "postern-broker", "--", "postern-broker", "init")
        self.gate.must("systemctl", "start", "postern-broker")
        self.gate.write("/root/policy.toml", POLICY)
        self.gate.wait("the broker answers", lambda: self.gate.can(
            "env", "POSTERN_BROKER=https://10.77.0.1:7443", "POSTERN_IDENTITY=/var/lib/postern-broker/admin", "postern", "status"))
        self.postern("policy", "apply", "-f", "/root/policy.toml")

    def test_03_a_machine_is_protected_once_it_is_enrolled(self):
        token = self.postern("agents", "token", "host:vm", "--output", "json")
        token = re.search(r'"token": "([^"]+)"', token)[1]
        example = self.vm.read("/usr/share/doc/postern-agent/examples/agent.toml")
        self.vm.write("/etc/postern/agent.toml", example.replace("broker.example.org", BROKER))
        self.vm.must("postern-agent", "enroll", "--token-file", "-", input=token + "\n")
        self.vm.must("systemctl", "start", "postern-agent-boot", "postern-agent")
        self.vm.wait("the agent is connected", self.agent_is_connected)
        self.vm.wait("the table is there", lambda: self.vm.can(*TABLE) and "22" in self.vm.ask(*TABLE))
        protected = time.time()
        self.evidence.append(f"from the installation of the agent to a protected machine: {protected - type(self).installed:.0f} s")
        self.shut("protected", protected)

    def test_04_a_window_lets_its_source_in_and_no_other(self):
        self.postern("request", "host:vm", "--port", "ssh", "--source", ALICE, "--for", "2h", "--reason", "a test of the packages")
        self.alice_logs_in()
        self.shut("a window for 10.77.0.3 opens")

    def alice_logs_in(self):
        """Alice gets a new session, and it goes on."""
        session = Session(self.alice, self.key)
        session.beats(5)
        session.end()

    def test_05_a_restart_with_an_open_window_opens_nothing_else_and_keeps_it(self):
        self.vm.reboot()
        self.assertEqual(self.vm.ask("systemctl", "is-active", "postern-agent-boot").strip(), "active")
        self.alice_logs_in()
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.shut("restart with the window open")
        boot = self.vm.must("systemctl", "show", "postern-agent-boot", "-p", "ExecMainExitTimestampMonotonic", "--value").strip()
        lan = self.vm.must("systemctl", "show", "lan", "-p", "ExecMainStartTimestampMonotonic", "--value").strip()
        self.assertLess(int(boot), int(lan), "the table is in the kernel before the network is up")

    def test_06_a_killed_agent_comes_back_and_no_port_opens(self):
        for _ in range(3):
            killed = self.main_pid("postern-agent")
            self.vm.must("kill", "-KILL", killed)
            self.vm.wait("systemd starts the agent again", lambda old=killed: self.main_pid("postern-agent") not in ("0", old))
            self.vm.wait("the agent runs", lambda: self.vm.ask("systemctl", "is-active", "postern-agent").strip() == "active")
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.alice_logs_in()
        self.shut("kill -9 of the agent, three times")

    def test_07_an_agent_that_hangs_is_replaced_and_no_port_opens(self):
        hung = self.main_pid("postern-agent")
        self.vm.must("kill", "-STOP", hung)
        self.vm.wait("the watchdog replaces the agent", lambda: self.main_pid("postern-agent") not in ("0", hung))
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.alice_logs_in()
        self.shut("an agent that hangs, until the watchdog has replaced it")

    def test_08_an_upgrade_under_a_session_cuts_nothing_opens_nothing_and_keeps_the_configuration(self):
        self.vm.write("/etc/postern/agent.toml", self.vm.read("/etc/postern/agent.toml") + "\n# a line of the administrator's\n")
        kept = self.vm.read("/etc/postern/agent.toml")
        session = Session(self.alice, self.key)
        old = self.main_pid("postern-agent")
        self.vm.must("dpkg", "-i", "/root/postern-agent.deb")
        self.gate.must("dpkg", "-i", "/root/postern-broker.deb", "/root/postern.deb")
        self.assertEqual(self.vm.read("/etc/postern/agent.toml"), kept)
        self.assertNotIn(self.main_pid("postern-agent"), ("0", old), "the new agent runs")
        self.vm.wait("the broker answers, and the agent is connected again", lambda: self.gate.can(
            "env", "POSTERN_BROKER=https://10.77.0.1:7443", "POSTERN_IDENTITY=/var/lib/postern-broker/admin", "postern", "targets", "host:vm")
            and self.agent_is_connected())
        silence, beats = session.end()
        self.assertLess(silence, 30)
        self.shut("upgrade with a session open")
        self.evidence.append(f"alice's session: {beats} beats through the upgrade, longest silence {silence:.2f} s")

    def test_09_the_same_package_again_changes_no_rule(self):
        rules = ("nft", "--terse", "--stateless", *TABLE[1:])
        before = self.vm.must(*rules)
        self.vm.must("dpkg", "-i", "/root/postern-agent.deb")
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.assertEqual(self.vm.must(*rules), before)
        self.alice_logs_in()
        self.shut("the same package again")

    def test_10_the_table_is_there_after_each_firewall_beside_it_has_started_reloaded_and_stopped(self):
        # As ufw's own manual has it: without this its unit does nothing.
        self.vm.must("ufw", "allow", "22/tcp")
        self.vm.must("ufw", "--force", "enable")
        for unit, reload in (("nftables", "systemctl reload nftables"), ("ufw", "ufw reload"), ("firewalld", "systemctl reload firewalld")):
            for step in (f"systemctl start {unit}", reload, f"systemctl restart {unit}", f"systemctl stop {unit}"):
                began = time.time()
                self.vm.must(*step.split())
                self.vm.wait(f"the table is there after {step}", lambda: self.vm.can(*TABLE))
                back = time.time()
                through = [at for at, outcome in self.attempts(began) if outcome in ("open", "refused") and at < back]
                self.evidence.append(f"{step}: {len(through)} attempts got through while the table was flushed")
                self.shut(f"after {step}", back)
        self.vm.must("ufw", "disable")

    def test_11_a_downgrade_opens_nothing_and_keeps_the_identity(self):
        kept = self.vm.read("/etc/postern/agent.toml")
        self.vm.must("dpkg", "-i", "/root/postern-agent-older.deb")
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.assertEqual(self.vm.read("/etc/postern/agent.toml"), kept)
        self.vm.must("dpkg", "-i", "/root/postern-agent.deb")
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.alice_logs_in()
        self.shut("downgrade, and upgrade again")

    def test_12_the_units_are_little_exposed(self):
        for machine, unit in ((self.vm, "postern-agent"), (self.vm, "postern-agent-boot"), (self.gate, "postern-broker")):
            self.evidence.append(machine.ask("systemd-analyze", "security", "--no-pager", unit).strip().splitlines()[-1].strip())

    def test_13_a_removal_leaves_the_table_and_says_so(self):
        session = Session(self.alice, self.key)
        said = self.vm.must("dpkg", "-r", "postern-agent")
        self.assertIn("the table 'inet postern' stays in the kernel", said)
        self.assertTrue(self.vm.can(*TABLE))
        self.assertFalse(self.vm.has("/usr/bin/postern-agent"))
        for path in ("/etc/postern/agent.toml", "/var/lib/postern-agent/identity/key.pem"):
            self.assertTrue(self.vm.has(path), path)
        session.end()
        self.shut("removal")
        # In a directory in which an image is made there is no systemd, and the tables of the kernel are another machine's.
        self.vm.must("sh", "-ec", "mkdir /root/kept; cp -a /var/lib/postern-agent /etc/postern /root/kept/")
        self.vm.must("unshare", "-m", "sh", "-ec", "mount -t tmpfs none /run/systemd; sh /var/lib/dpkg/info/postern-agent.postrm purge")
        self.assertTrue(self.vm.can(*TABLE))
        self.assertFalse(self.vm.has("/var/lib/postern-agent"))
        self.vm.must("sh", "-ec", "mv /root/kept/postern-agent /var/lib/; mv /root/kept/postern /etc/; rmdir /root/kept")
        self.shut("purge in the directory of an image")

    def test_14_a_package_that_is_installed_again_goes_on_where_it_was(self):
        self.vm.must("dpkg", "-i", "/root/postern-agent.deb")
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.alice_logs_in()
        self.shut("installed again")
        self.vm.reboot()
        self.vm.wait("the agent is connected again", self.agent_is_connected)
        self.shut("restart after that")

    def test_15_a_purge_takes_table_identity_state_and_configuration(self):
        self.vm.must("nft", "add", "table", "inet", "someone_elses")
        self.vm.must("dpkg", "--purge", "postern-agent")
        self.assertEqual(self.vm.must("nft", "list", "tables").strip(), "table inet someone_elses")
        for path in ("/etc/postern", "/var/lib/postern-agent", "/usr/lib/systemd/system/postern-agent.service",
                     "/etc/systemd/system/multi-user.target.wants/postern-agent.service",
                     "/etc/systemd/system/sysinit.target.wants/postern-agent-boot.service"):
            self.assertFalse(self.vm.has(path), path)
        self.assertEqual({outcome for _, outcome in self.attempts(time.time())}, {"open"})
        self.vm.must("dpkg", "--purge", "postern-agent")

    def test_16_a_purge_of_the_broker_takes_keys_store_and_user(self):
        self.gate.must("dpkg", "-r", "postern-broker", "postern")
        self.assertTrue(self.gate.has("/var/lib/postern-broker/ca/root.key"))
        self.gate.must("dpkg", "--purge", "postern-broker", "postern")
        for path in ("/etc/postern", "/var/lib/postern-broker", "/usr/bin/postern"):
            self.assertFalse(self.gate.has(path), path)
        self.assertFalse(self.gate.can("getent", "passwd", "postern-broker"))

    def test_17_the_scripts_of_the_rpms_run_to_their_ends(self):
        for name, user in (("postern-agent", None), ("postern-broker", "postern-broker"), ("postern", None)):
            rpm = next(iter(PACKAGES.glob(f"{name}-[0-9]*.x86_64.rpm")))
            self.gate.put(rpm, f"/root/{name}.rpm")
            # The dependencies are Debian's here, which rpm does not know.
            for step in (("-i", "--nodeps"), ("-U", "--nodeps", "--force"), ("-e",)):
                what = f"/root/{name}.rpm" if step[0] != "-e" else name
                said = self.gate.must("rpm", *step, what)
                self.assertNotIn("scriptlet failed", said)
                self.assertNotIn("error", said.lower(), said)
                if step[0] == "-U":
                    self.assertTrue(self.gate.can(name, "--version"))
                    if user:
                        self.assertTrue(self.gate.can("getent", "passwd", user))
            self.assertFalse(self.gate.has(f"/usr/bin/{name}"))


if __name__ == "__main__":
    unittest.main(verbosity=2, failfast=True)
