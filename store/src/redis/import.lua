-- Fills a store that this migration, and no other, has marked as incomplete.
--
-- KEYS[1]: the prefix of every key. ARGV: the mark; the commands as JSON, each with its name, its key without the prefix,
-- and the rest. Answers 1 if the mark was there, and otherwise writes nothing and answers 0.
local p = KEYS[1]
if redis.call('GET', p .. 'incomplete') ~= ARGV[1] then
    return 0
end
for _, command in ipairs(cjson.decode(ARGV[2])) do
    redis.call(command[1], p .. command[2], unpack(command, 3))
end
return 1
