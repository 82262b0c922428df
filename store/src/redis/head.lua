-- Reads the head of the audit log, and a field if one is named.
--
-- KEYS[1]: the prefix of every key. ARGV: the known head, and perhaps a hash and a field of it.
-- Answers the head, as `known.lua` does, and the value of the field.
local p = KEYS[1]
return { head_beside(p, ARGV[1]), ARGV[2] and redis.call('HGET', p .. ARGV[2], ARGV[3]) or false }
