-- Gives the lease of a target back, if this member still holds it. The next member to take it inherits it: only the holder
-- before it knows what it sent to the target's agent.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the target, the token, and 'keep' to end only an exclusive claim, or
-- 'forget' to leave nothing of a target that is gone.
local p, me, target, token = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if ARGV[4] == 'keep' then
    if redis.call('HGET', p .. 'exclusive', target) == me .. ' ' .. token then
        redis.call('HDEL', p .. 'exclusive', target)
    end
    return 'ok'
end
if redis.call('HGET', p .. 'leases', target) == me .. ' ' .. token then
    if ARGV[4] == 'forget' then
        redis.call('HDEL', p .. 'leases', target)
    else
        redis.call('HSET', p .. 'leases', target, 'none ' .. token)
    end
    redis.call('HDEL', p .. 'exclusive', target)
    redis.call('HDEL', p .. 'statuses', target)
    redis.call('SREM', p .. 'held:' .. me, target)
    if ARGV[4] ~= 'forget' then
        redis.call('PUBLISH', p .. 'events', cjson.encode({ kind = 'free', by = me, target = target }))
    end
end
return 'ok'
