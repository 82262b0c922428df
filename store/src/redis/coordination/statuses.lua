-- Reads the statuses of targets that the holders of their leases have published.
--
-- KEYS[1]: the prefix of every key. ARGV: the targets.
-- Answers a status for each target, empty if its holder is gone or has published nothing under its lease.
local p, answer = KEYS[1], {}
for i, target in ipairs(ARGV) do
    answer[i] = ''
    local lease = redis.call('HGET', p .. 'leases', target)
    local published = lease and redis.call('HGET', p .. 'statuses', target)
    if published and string.sub(published, 1, #lease + 1) == lease .. ' ' then
        if redis.call('EXISTS', p .. 'alive:' .. string.match(lease, '^(%S+)')) == 1 then
            answer[i] = string.sub(published, #lease + 2)
        end
    end
end
return answer
