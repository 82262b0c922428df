# $1 is 1 for an installation and 2 for an upgrade. Nothing changes until /etc/postern/agent.toml is there and the machine is enrolled.
if [ -x /usr/bin/systemd-tmpfiles ]; then systemd-tmpfiles --create postern-agent.conf || :; fi
if [ "$1" -eq 1 ]; then systemctl --no-reload preset postern-agent-boot.service postern-agent.service >/dev/null 2>&1 || :; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
if [ "$1" -eq 1 ]; then
    echo "postern-agent: copy /usr/share/doc/postern-agent/examples/agent.toml to /etc/postern, set the broker, run"
    echo "postern-agent: 'postern-agent enroll --token-file -', and 'systemctl enable --now postern-agent-boot postern-agent'"
fi
