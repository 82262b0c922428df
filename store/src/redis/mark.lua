-- Marks the target of a migration before it is filled, or its source after it was read.
--
-- KEYS[1]: the prefix of every key. ARGV: 'incomplete', the mark and 'overwrite' if a mark may be replaced; or 'moved', the
-- mark and the head with which the log must end. Answers 'ok' or 'replaced'; or 'incomplete' and the other mark,
-- 'not empty' or 'changed' if nothing was marked.
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
for _, name in ipairs({ 'head', 'audit', 'kinds' }) do
    if not mark and redis.call('EXISTS', p .. name) == 1 then
        return { 'not empty' }
    end
end
redis.call('SET', p .. 'incomplete', ARGV[2])
return { mark and 'replaced' or 'ok' }
