-- Reads grants by an index, at one instant, with the head and every policy.
--
-- KEYS[1]: what every key begins with. ARGV: the index; '+' or '(' and the id before which to begin; '-' to go backward and
-- '+' to go forward; at most how many; 'policies' to have those too; whose membership looks, and the target and the token of
-- its lease, where it looks by the right of one.
-- Answers the head, the grants' ids and bodies in turn, and the policies' names and bodies in turn; or 'lost' in the head's
-- place where the lease is another's.
local p = KEYS[1]
if ARGV[7] then
    local is_ours = redis.call('HGET', p .. 'leases', ARGV[7]) == ARGV[6] .. ' ' .. ARGV[8]
    if not is_ours or redis.call('EXISTS', p .. 'alive:' .. ARGV[6]) == 0 then
        return { 'lost', {}, {} }
    end
end
local ids
if ARGV[3] == '-' then
    ids = redis.call('ZREVRANGEBYLEX', p .. ARGV[1], ARGV[2], '-', 'LIMIT', 0, ARGV[4])
else
    ids = redis.call('ZRANGEBYLEX', p .. ARGV[1], '-', ARGV[2], 'LIMIT', 0, ARGV[4])
end
local grants = {}
for _, id in ipairs(ids) do
    grants[#grants + 1] = id
    grants[#grants + 1] = redis.call('HGET', p .. 'grants', id) or ''
end
local policies = {}
if ARGV[5] == 'policies' then
    policies = redis.call('HGETALL', p .. 'policies')
end
return { redis.call('GET', p .. 'head') or '', grants, policies }
