-- Reads lines of the audit log after a record.
--
-- KEYS[1]: the prefix of every key. ARGV: the number of the record, and the most lines.
-- Answers the number of the first line, and the lines. The first records may have left the log.
local p, after, count = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local base = tonumber(string.match(redis.call('GET', p .. 'base') or '', '^(%d+)') or '0')
local from = math.max(after - base, 0)
return { string.format('%d', base + from + 1), redis.call('LRANGE', p .. 'audit', from, from + count - 1) }
