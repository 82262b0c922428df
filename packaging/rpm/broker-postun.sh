# $1 is 0 for a removal and 1 for an upgrade, which restarts a running broker.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -ge 1 ]; then systemctl try-restart postern-broker.service || :; fi
fi
