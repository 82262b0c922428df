-- Takes the lease of a target.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the target, and the claim: 'free', 'agent' or 'exclusive'.
-- Answers 'fenced' if the membership has ended; 'no' if another member has a better claim; or 'mine', the token, and '1' if
-- another member held the lease before.
local p, me, target, claim = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', p .. 'alive:' .. me) == 0 then
    return { 'fenced' }
end
local lease = redis.call('HGET', p .. 'leases', target)
local holder, token
if lease then
    holder, token = string.match(lease, '^(%S+) (%d+)$')
end
if holder == me then
    if claim == 'exclusive' then
        redis.call('HSET', p .. 'exclusive', target, lease)
    end
    return { 'mine', token, '0' }
end
if holder and redis.call('EXISTS', p .. 'alive:' .. holder) == 1 then
    if claim == 'free' or redis.call('HGET', p .. 'exclusive', target) == lease then
        return { 'no' }
    end
end
token = tostring(redis.call('INCR', p .. 'fence'))
lease = me .. ' ' .. token
if holder then
    redis.call('SREM', p .. 'held:' .. holder, target)
    if redis.call('HEXISTS', p .. 'members', holder) == 1 then
        redis.call('HINCRBY', p .. 'losses', holder, 1)
    end
end
redis.call('HSET', p .. 'leases', target, lease)
redis.call('SADD', p .. 'held:' .. me, target)
if claim == 'exclusive' then
    redis.call('HSET', p .. 'exclusive', target, lease)
else
    redis.call('HDEL', p .. 'exclusive', target)
end
if holder then
    redis.call('PUBLISH', p .. 'events', cjson.encode({ kind = 'taken', by = me, target = target, exclusive = claim == 'exclusive' }))
end
return { 'mine', token, holder and '1' or '0' }
