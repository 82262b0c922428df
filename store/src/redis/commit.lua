-- Applies a group of transactions or none of it.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the head that the records follow, the head after them, the
-- transactions as JSON, the length of a turn in ms, the known head, and the records of the audit log, one line each.
-- '?' in place of the first head: the member does not know the head, and asks for its turn and for the head.
-- Answers 'ok'; 'fenced' if the membership has ended; 'moved' if the store is elsewhere or incomplete; 'head' and the head, as `known.lua` does;
-- 'wait' if another member has the turn; 'lost' and the index, from 0, of a transaction whose lease another member holds; or
-- 'conflict' and the indexes of the transaction and the write that cannot be made; or 'unmet' and the indexes of the transaction and the
-- requirement that does not hold; or 'uncut' and the index of a transaction that would cut the audit log where it is otherwise.
-- The script checks everything before it
-- writes anything.
--
-- Turns: a member whose head was moved by another member has the turn from then on, and a member that comes meanwhile waits
-- in a queue. A commit hands the turn to the first in the queue. So no member's commit is overtaken twice. A turn is limited
-- in time, so that a member that dies in it holds the others up for no longer than that. A single member never waits and
-- never writes a turn.
local p, me = KEYS[1], ARGV[1]
if redis.call('EXISTS', p .. 'alive:' .. me) == 0 then
    return { 'fenced' }
end
if redis.call('EXISTS', p .. 'moved', p .. 'incomplete') > 0 then
    return { 'moved' }
end

local turn, queue = p .. 'turn', p .. 'queue'
-- Gives the turn to the first in the queue that is still a member, and returns that member.
local function hand_over()
    while true do
        local first = redis.call('ZPOPMIN', queue)[1]
        if not first then
            redis.call('DEL', turn)
            return nil
        end
        if redis.call('EXISTS', p .. 'alive:' .. first) == 1 then
            redis.call('SET', turn, first, 'PX', ARGV[5])
            return first
        end
    end
end
local holder = redis.call('GET', turn)
if not holder and redis.call('EXISTS', queue) == 1 then
    holder = hand_over()
end
if holder and holder ~= me then
    local now = redis.call('TIME')
    -- In the order of arrival: a member that is in the queue already keeps its place.
    redis.call('ZADD', queue, 'NX', now[1] * 1000000 + now[2], me)
    return { 'wait' }
end
local head = redis.call('GET', p .. 'head') or ''
if head ~= ARGV[2] then
    redis.call('SET', turn, me, 'PX', ARGV[5])
    return { 'head', head_beside(p, ARGV[6]) }
end

-- The documents that the transactions write, as they become, in the order in which they are first written.
local documents, order = {}, {}
-- Returns a document as it is by now, and the key of its place in `documents`.
local function look(kind, key)
    local place = kind .. '\0' .. key
    local found = documents[place]
    if not found then
        found = { kind = kind, key = key, version = 0, is_there = false }
        -- A document is kept as its version, a space and its body; a deleted one that left its version has no body.
        local text = redis.call('HGET', p .. kind, key)
        if text then
            local version = string.match(text, '^(%d+) ')
            if version and tonumber(version) <= 999999999999999 then
                found.is_kept, found.version, found.is_there = true, tonumber(version), #text > #version + 1
            else
                -- Another program wrote it: a member may write over it.
                found.is_kept, found.version, found.is_there = true, 0, true
            end
        end
    end
    return found, place
end
local function document(kind, key)
    local found, place = look(kind, key)
    if not documents[place] then
        documents[place], order[#order + 1] = found, found
    end
    return found
end
-- Reports whether a document is as it is expected.
local function holds(d, expect)
    if expect == 'absent' then
        return not d.is_there
    end
    local last = string.match(expect, '^absent (%d+)$')
    if last then
        return not d.is_there and d.version == tonumber(last)
    end
    return expect == 'any' or (d.is_there and d.version == tonumber(expect))
end
-- Makes a write, and reports whether it may be made.
local function apply(write)
    local d = document(write.kind, write.key)
    -- A version that a record of a kind that keeps none seems to have left is another program's.
    if not d.is_there and not write.keep then
        d.version = 0
    end
    if not holds(d, write.expect) then
        return false
    end
    local deletes = write.body == ''
    if deletes and not d.is_there then
        return false
    end
    d.is_there, d.body, d.indexes = not deletes, write.body, write.indexes
    -- As the member takes it: after the largest version, which only another program can have reached, versions begin again.
    local after = d.version < 999999999999999 and d.version + 1 or 1
    d.version = (deletes and not write.keep) and 0 or after
    return true
end

-- What the other members have to look at.
local event = { kind = 'committed', by = me, before = head, after = ARGV[3], records = {}, targets = {} }
local transactions = cjson.decode(ARGV[4])
-- The cut of the audit log, if there is one.
local base
-- The rest of the group comes again at once; if nothing is left of it, the turn is over.
local function refuse(answer)
    if holder and #transactions == 1 then
        hand_over()
    end
    return answer
end
for t, transaction in ipairs(transactions) do
    local lease = transaction.lease
    if lease ~= '' and redis.call('HGET', p .. 'leases', lease) ~= me .. ' ' .. transaction.token then
        return refuse({ 'lost', tostring(t - 1) })
    end
    for r, required in ipairs(transaction.requires) do
        if not holds(look(required.kind, required.key), required.expect) then
            return refuse({ 'unmet', tostring(t - 1), tostring(r - 1) })
        end
    end
    local cut = transaction.cut
    if cut then
        local last = redis.call('LINDEX', p .. 'audit', cut.count - 1)
        local is_there = last and string.find(last, '"hash":"' .. cut.hash .. '"', 1, true)
        local is_whole = is_there and redis.call('LLEN', p .. 'audit') > cut.count
        -- One cut in a group: a second one would have to be checked against the first.
        if base or cut.count < 1 or not is_whole or (redis.call('GET', p .. 'base') or '') ~= cut.from then
            return refuse({ 'uncut', tostring(t - 1) })
        end
        base = cut
    end
    for w, write in ipairs(transaction.writes) do
        if not apply(write) then
            return refuse({ 'conflict', tostring(t - 1), tostring(w - 1) })
        end
        if write.announced then
            event.records[#event.records + 1] = { write.kind, write.key }
        end
        for _, target in ipairs(write.targets) do
            local holds = redis.call('HGET', p .. 'leases', target)
            event.targets[#event.targets + 1] = { target, holds and string.match(holds, '^(%S+)') or '' }
        end
    end
end

-- Returns the names in a text with one a line, as a set.
local function names(text)
    local set = {}
    for name in string.gmatch(text, '[^\n]+') do
        set[name] = true
    end
    return set
end
local function index(d)
    local kept = p .. 'indexed:' .. d.kind
    local before = d.is_kept and redis.call('HGET', kept, d.key) or ''
    if before == d.indexes then
        return
    end
    local old, new = names(before), names(d.indexes)
    for name in pairs(old) do
        if not new[name] then
            redis.call('ZREM', p .. 'index:' .. d.kind .. ':' .. name, d.key)
        end
    end
    for name in pairs(new) do
        if not old[name] then
            redis.call('ZADD', p .. 'index:' .. d.kind .. ':' .. name, 0, d.key)
        end
    end
    if d.indexes == '' then
        redis.call('HDEL', kept, d.key)
    else
        redis.call('HSET', kept, d.key, d.indexes)
    end
end
local kinds = {}
for _, d in ipairs(order) do
    if d.version > 0 then
        redis.call('HSET', p .. d.kind, d.key, string.format('%d ', d.version) .. d.body)
    else
        redis.call('HDEL', p .. d.kind, d.key)
    end
    index(d)
    if not kinds[d.kind] then
        kinds[d.kind] = true
        redis.call('SADD', p .. 'kinds', d.kind)
    end
end
if base then
    redis.call('LTRIM', p .. 'audit', base.count, -1)
    redis.call('SET', p .. 'base', base.upto)
end
for i = 7, #ARGV do
    redis.call('RPUSH', p .. 'audit', ARGV[i])
end
redis.call('SET', p .. 'head', ARGV[3])
-- An empty table would be written as an object, and not as a list.
for _, name in ipairs({ 'records', 'targets' }) do
    if #event[name] == 0 then
        event[name] = nil
    end
end
redis.call('PUBLISH', p .. 'events', cjson.encode(event))
if holder then
    hand_over()
end
return { 'ok' }
