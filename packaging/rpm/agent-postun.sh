# $1 is 0 for a removal and 1 for an upgrade. An upgrade restarts a running agent, and leaves the table in the kernel as it is.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -ge 1 ]; then systemctl try-restart postern-agent.service || :; fi
fi
