-- Reads grants by an index, at one instant, with the head and every policy.
--
-- KEYS[1]: what every key begins with. ARGV: the index; '+' or '(' and the id before which to begin; '-' to go backward and
-- '+' to go forward; at most how many; 'policies' to have those too.
-- Answers the head, the grants' ids and bodies in turn, and the policies' names and bodies in turn.
local p = KEYS[1]
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
