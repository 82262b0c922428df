# $1 is 0 for a removal and 1 for an upgrade.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable postern-broker.service >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then systemctl stop postern-broker.service || :; fi
    if [ -e /var/lib/postern-broker ]; then
        echo "postern-broker: the keys, the store and the audit log in /var/lib/postern-broker stay, and so does the user postern-broker"
    fi
fi
