-- Takes leases of a member that is gone.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the member that is gone, and the most leases.
-- Answers 'fenced' if the membership has ended; else 'ok', and the targets and their tokens alternately.
local p, me, gone = KEYS[1], ARGV[1], ARGV[2]
if redis.call('EXISTS', p .. 'alive:' .. me) == 0 then
    return { 'fenced' }
end
local answer = { 'ok' }
if redis.call('EXISTS', p .. 'alive:' .. gone) == 1 then
    return answer
end
for _, target in ipairs(redis.call('SRANDMEMBER', p .. 'held:' .. gone, ARGV[3])) do
    redis.call('SREM', p .. 'held:' .. gone, target)
    local lease = redis.call('HGET', p .. 'leases', target)
    if lease and string.match(lease, '^(%S+)') == gone then
        local token = tostring(redis.call('INCR', p .. 'fence'))
        redis.call('HSET', p .. 'leases', target, me .. ' ' .. token)
        redis.call('SADD', p .. 'held:' .. me, target)
        redis.call('HDEL', p .. 'exclusive', target)
        answer[#answer + 1] = target
        answer[#answer + 1] = token
    end
end
return answer
