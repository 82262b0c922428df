# $1 is 1 for an installation and 2 for an upgrade. The unit starts nothing until /etc/postern/broker.toml is there.
if [ -x /usr/bin/systemd-sysusers ]; then systemd-sysusers postern-broker.conf || :; fi
if [ -x /usr/bin/systemd-tmpfiles ]; then systemd-tmpfiles --create postern-broker.conf || :; fi
if [ "$1" -eq 1 ]; then systemctl --no-reload preset postern-broker.service >/dev/null 2>&1 || :; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
if [ "$1" -eq 1 ]; then
    echo "postern-broker: copy /usr/share/doc/postern-broker/examples/broker.toml to /etc/postern and set 'names', then run"
    echo "postern-broker: 'runuser -u postern-broker -- postern-broker init' and 'systemctl enable --now postern-broker'"
fi
