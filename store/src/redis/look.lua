-- Reads grants by an index, at one instant, with the head and every policy.
--
-- KEYS[1]: the prefix of every key. ARGV: the index; '+' or '(' and the id before which to begin; '-' to go backward and
-- '+' to go forward; the most grants; 'policies' to have those too; for a read under a lease, the membership, the target and
-- the token; and last the known head.
-- Answers the head, as `known.lua` does, the grants' ids and bodies alternately, and the policies' names and bodies alternately; or 'lost' in
-- place of the head if another member holds the lease.
local p = KEYS[1]
if #ARGV > 6 then
    local is_held = redis.call('HGET', p .. 'leases', ARGV[7]) == ARGV[6] .. ' ' .. ARGV[8]
    if not is_held or redis.call('EXISTS', p .. 'alive:' .. ARGV[6]) == 0 then
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
return { head_beside(p, ARGV[#ARGV]), grants, policies }
