-- Reads what the holders of targets tell of them.
--
-- KEYS[1]: what every key begins with. ARGV: the targets.
-- Answers a view for each, or nothing where its holder is gone, or has told nothing under the lease that it has.
local p, answer = KEYS[1], {}
for i, target in ipairs(ARGV) do
    answer[i] = ''
    local lease = redis.call('HGET', p .. 'leases', target)
    local view = lease and redis.call('HGET', p .. 'views', target)
    if view and string.sub(view, 1, #lease + 1) == lease .. ' ' then
        if redis.call('EXISTS', p .. 'alive:' .. string.match(lease, '^(%S+)')) == 1 then
            answer[i] = string.sub(view, #lease + 2)
        end
    end
end
return answer
