-- Keeps the statuses that a member publishes of targets, each if the member still holds the target's lease.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the targets that wait for a status as a list in JSON, and then
-- targets, tokens and statuses alternately.
local p, me = KEYS[1], ARGV[1]
for i = 3, #ARGV, 3 do
    local lease = me .. ' ' .. ARGV[i + 1]
    if redis.call('HGET', p .. 'leases', ARGV[i]) == lease then
        redis.call('HSET', p .. 'statuses', ARGV[i], lease .. ' ' .. ARGV[i + 2])
    end
end
if ARGV[2] ~= '' then
    redis.call('PUBLISH', p .. 'events', '{"kind":"published","by":"' .. me .. '","targets":' .. ARGV[2] .. '}')
end
return 'ok'
