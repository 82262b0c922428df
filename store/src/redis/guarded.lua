-- Runs commands while a mark of this broker's is there, and not any more once another has replaced or removed it.
--
-- KEYS[1]: the prefix of every key. ARGV: the key of the mark without the prefix; the mark; the commands as JSON, each with
-- its name, its key without the prefix, and the rest. Answers 1 if the mark was there, and otherwise writes nothing and
-- answers 0.
local p = KEYS[1]
if redis.call('GET', p .. ARGV[1]) ~= ARGV[2] then
    return 0
end
for _, command in ipairs(cjson.decode(ARGV[3])) do
    redis.call(command[1], p .. command[2], unpack(command, 3))
end
return 1
