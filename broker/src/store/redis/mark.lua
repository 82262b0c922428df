-- Marks a store before it is moved to, or after it was moved from.
--
-- KEYS[1]: what every key begins with. ARGV: 'incomplete', the mark and 'overwrite' where a mark may be replaced; or
-- 'moved', the mark and the head that the log must end with. Answers 'ok'; 'replaced'; or 'incomplete' and by whom,
-- 'not empty', 'changed': nothing was marked then.
local p = KEYS[1]
if ARGV[1] == 'moved' then
    if (redis.call('GET', p .. 'head') or '') ~= ARGV[3] then
        return { 'changed' }
    end
    redis.call('SET', p .. 'moved', ARGV[2])
    return { 'ok' }
end
local mark = redis.call('GET', p .. 'incomplete')
if mark and ARGV[3] ~= 'overwrite' then
    return { 'incomplete', mark }
end
for _, name in ipairs({ 'head', 'audit', 'grants', 'requests', 'policies', 'agents', 'tokens' }) do
    if not mark and redis.call('EXISTS', p .. name) == 1 then
        return { 'not empty' }
    end
end
redis.call('SET', p .. 'incomplete', ARGV[2])
return { mark and 'replaced' or 'ok' }
