-- Begins the upgrade of a store of an older schema: from now on the store refuses every broker that knows only that one.
--
-- KEYS[1]: the prefix of every key. ARGV: the schema after the upgrade, the name of the key with which records are sealed, and the mark
-- of the upgrade. Answers the mark in the store, which is that of the member that began; nothing if the upgrade was completed; or 'other'
-- if the store was sealed with another key.
-- Memberships, leases, locks and statuses go, so that each broker joins again: a broker of the older schema is refused when
-- it renews its membership, and its commits are refused because it has none.
local p = KEYS[1]
if (redis.call('GET', p .. 'sealed') or ARGV[2]) ~= ARGV[2] then
    return 'other'
end
if tonumber(redis.call('GET', p .. 'schema') or ARGV[1]) >= tonumber(ARGV[1]) then
    return redis.call('GET', p .. 'upgrading') or ''
end
for _, member in ipairs(redis.call('HKEYS', p .. 'members')) do
    redis.call('DEL', p .. 'alive:' .. member, p .. 'held:' .. member)
end
for _, name in ipairs({ 'writer', 'members', 'losses', 'jobs', 'leases', 'turns', 'views', 'turn', 'queue', 'exclusive', 'locks',
    'statuses' }) do
    redis.call('DEL', p .. name)
end
for _, kind in ipairs({ 'agents', 'grants', 'policies', 'requests', 'tokens' }) do
    if redis.call('EXISTS', p .. kind) == 1 then
        redis.call('SADD', p .. 'kinds', kind)
    end
end
redis.call('SET', p .. 'upgrading', ARGV[3])
redis.call('SET', p .. 'sealed', ARGV[2])
redis.call('SET', p .. 'schema', ARGV[1])
return ARGV[3]
