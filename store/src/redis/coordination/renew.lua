-- Renews a membership, or joins with it.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, its life in ms, the member's description of itself, '1' to join,
-- the newest schema that the member knows, and the known head.
-- Answers 'ok', 'gone', 'schema' and the store's schema, or 'moved' and the new address; then the head, as `known.lua` does, the store's own time
-- (s, and µs), the number of its leases that others took, and the members that are gone and still have leases.
local p, me = KEYS[1], ARGV[1]
local schema = tonumber(redis.call('GET', p .. 'schema') or ARGV[5])
if schema > tonumber(ARGV[5]) then
    return { 'schema', tostring(schema) }
end
if redis.call('EXISTS', p .. 'moved', p .. 'incomplete') > 0 then
    return { 'moved', redis.call('GET', p .. 'moved') or 'a store that has not arrived' }
end
local alive = p .. 'alive:' .. me
local status = 'ok'
if ARGV[4] == '1' then
    redis.call('SET', alive, '1', 'PX', ARGV[2])
elseif redis.call('PEXPIRE', alive, ARGV[2]) == 0 then
    status = 'gone'
end
if status == 'ok' then
    redis.call('HSET', p .. 'members', me, ARGV[3])
end
local time = redis.call('TIME')
local answer = { status, head_beside(p, ARGV[6]), time[1], time[2], redis.call('HGET', p .. 'losses', me) or '0' }
for _, member in ipairs(redis.call('HKEYS', p .. 'members')) do
    if redis.call('EXISTS', p .. 'alive:' .. member) == 0 then
        if redis.call('SCARD', p .. 'held:' .. member) == 0 then
            redis.call('HDEL', p .. 'members', member)
            redis.call('HDEL', p .. 'losses', member)
        else
            answer[#answer + 1] = member
        end
    end
end
return answer
