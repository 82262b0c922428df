-- Gives the lease of a target back, if it still is this member's. Whoever takes it next comes after another: what that one
-- told the target's agent, nobody else knows.
--
-- KEYS[1]: what every key begins with. ARGV: the membership, the target, the token, and 'keep' to end a turn alone.
local p, me, target, token = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if ARGV[4] == 'keep' then
    if redis.call('HGET', p .. 'turns', target) == me .. ' ' .. token then
        redis.call('HDEL', p .. 'turns', target)
    end
    return 'ok'
end
if redis.call('HGET', p .. 'leases', target) == me .. ' ' .. token then
    redis.call('HSET', p .. 'leases', target, 'nobody ' .. token)
    redis.call('HDEL', p .. 'turns', target)
    redis.call('HDEL', p .. 'views', target)
    redis.call('SREM', p .. 'held:' .. me, target)
    redis.call('PUBLISH', p .. 'news', cjson.encode({ kind = 'free', by = me, target = target }))
end
return 'ok'
