-- Reads documents by an index, at one instant, with the head, every document of another kind, and single ones of a third and a fourth.
--
-- KEYS[1]: the prefix of every key. ARGV: the kind; the index; '-' or '(' and the key after which to begin; '+' or '(' and the
-- key before which to end; '-' to go backward and '+' to go forward; the most documents; the other kind, or nothing; for a read
-- under a lease, the membership, the target, the token, the third kind and the key in it, the fourth kind and the key in it; and
-- last the known head.
-- Answers the head, as `known.lua` does, the index's keys and documents alternately, the other kind's keys and documents
-- alternately, and the documents of the third and the fourth kind, or nothing; or 'lost' in place of the head if another member holds
-- the lease.
local p, kind, one, beside = KEYS[1], ARGV[1], '', ''
if #ARGV > 8 then
    local is_held = redis.call('HGET', p .. 'leases', ARGV[9]) == ARGV[8] .. ' ' .. ARGV[10]
    if not is_held or redis.call('EXISTS', p .. 'alive:' .. ARGV[8]) == 0 then
        return { 'lost', {}, {}, '', '' }
    end
    one = redis.call('HGET', p .. ARGV[11], ARGV[12]) or ''
    beside = redis.call('HGET', p .. ARGV[13], ARGV[14]) or ''
end
local index, keys = p .. 'index:' .. kind .. ':' .. ARGV[2], nil
if ARGV[5] == '-' then
    keys = redis.call('ZREVRANGEBYLEX', index, ARGV[4], ARGV[3], 'LIMIT', 0, ARGV[6])
else
    keys = redis.call('ZRANGEBYLEX', index, ARGV[3], ARGV[4], 'LIMIT', 0, ARGV[6])
end
local documents = {}
for _, key in ipairs(keys) do
    documents[#documents + 1] = key
    documents[#documents + 1] = redis.call('HGET', p .. kind, key) or ''
end
local whole = {}
if ARGV[7] ~= '' then
    whole = redis.call('HGETALL', p .. ARGV[7])
end
return { head_beside(p, ARGV[#ARGV]), documents, whole, one, beside }
