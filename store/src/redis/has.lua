-- Reads lines of the audit log by their numbers, at one instant.
--
-- KEYS[1]: the prefix of every key. ARGV: the numbers.
-- Answers a line for each number; an empty text for one that is not there, or has left the log.
local p = KEYS[1]
local base = tonumber(string.match(redis.call('GET', p .. 'base') or '', '^(%d+)') or '0')
local lines = {}
for i, number in ipairs(ARGV) do
    -- Below zero the index would count from the end.
    local at = tonumber(number) - base - 1
    lines[i] = at >= 0 and redis.call('LINDEX', p .. 'audit', string.format('%d', at)) or ''
end
return lines
