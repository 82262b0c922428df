-- Fills a store that is marked as incomplete by this migration and by no other.
--
-- KEYS[1]: what every key begins with. ARGV: the mark; the commands as JSON, each with its name, what its key ends with,
-- and the rest. Answers whether the mark was there; nothing is written where it was not.
local p = KEYS[1]
if redis.call('GET', p .. 'incomplete') ~= ARGV[1] then
    return 0
end
for _, command in ipairs(cjson.decode(ARGV[2])) do
    redis.call(command[1], p .. command[2], unpack(command, 3))
end
return 1
