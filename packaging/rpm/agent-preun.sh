# $1 is 0 for a removal and 1 for an upgrade. A removal stops the agent; the table stays in the kernel, so that no port opens by it.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable postern-agent-boot.service postern-agent.service >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then
        systemctl stop postern-agent.service || :
        if nft list table inet postern >/dev/null 2>&1; then
            echo "postern-agent: the table 'inet postern' stays in the kernel: protected ports stay shut, and open windows end on time."
            echo "postern-agent: from the next start of the machine on nothing shuts them. To open them now: nft delete table inet postern"
        fi
    fi
    if [ -e /var/lib/postern-agent ]; then
        echo "postern-agent: the identity and the state in /var/lib/postern-agent stay; remove that directory if they are not needed"
    fi
fi
