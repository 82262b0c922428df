-- Applies a group of transactions or none of it.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the head that the records follow, the head after them, the
-- transactions as JSON, the length of a turn in ms, the known head, and the records of the audit log, one line each.
-- '?' in place of the first head: the member does not know the head, and asks for its turn and for the head.
-- Answers 'ok'; 'fenced' if the membership has ended; 'moved' if the store is elsewhere or incomplete; 'head' and the head, as `known.lua` does;
-- 'wait' if another member has the turn; 'lost' and the index, from 0, of a transaction whose lease another member holds; or
-- 'conflict' and the indexes of the transaction and the change that cannot be made. The script checks everything before it
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

local staged, order, later = {}, {}, {}
local function get(hash, field)
    local key = hash .. '\0' .. field
    if staged[key] then
        return staged[key].value
    end
    return redis.call('HGET', p .. hash, field)
end
local function set(hash, field, value)
    local key = hash .. '\0' .. field
    if not staged[key] then
        order[#order + 1] = key
    end
    staged[key] = { hash = hash, field = field, value = value }
end
-- A versioned record is its version, a space and its body; a deleted one has no body.
local function parts(value)
    if not value then
        return nil, 0
    end
    local version, body = string.match(value, '^(%d+) (.*)$')
    return body ~= '' and version or nil, tonumber(version)
end
local function put(hash, field, expect, body)
    local found, last = parts(get(hash, field))
    if expect == 'absent' and found then
        return false
    end
    if expect ~= 'absent' and expect ~= 'any' and expect ~= found then
        return false
    end
    set(hash, field, string.format('%d ', last + 1) .. body)
    return true
end

local changes = {}
-- The places at which the other members have to look.
local news = { grants = {}, targets = {}, agents = {} }
function changes.grant(c)
    if not put('grants', c.key, c.expect, c.body) then
        return false
    end
    later[#later + 1] = c
    news.grants[#news.grants + 1] = c.key
    return true
end
function changes.request(c)
    if get('requests', c.key) then
        return false
    end
    set('requests', c.key, c.body)
    return true
end
function changes.policy(c)
    news.policies = true
    return put('policies', c.key, c.expect, c.body)
end
function changes.delete_policy(c)
    local found, last = parts(get('policies', c.key))
    if not found then
        return false
    end
    set('policies', c.key, string.format('%d ', last + 1))
    news.policies = true
    return true
end
function changes.agent(c)
    news.agents[#news.agents + 1] = c.key
    return put('agents', c.key, c.expect, c.body)
end
function changes.token(c)
    set('tokens', c.key, c.body)
    return true
end
function changes.take_token(c)
    if not get('tokens', c.key) then
        return false
    end
    set('tokens', c.key, false)
    return true
end

local transactions = cjson.decode(ARGV[4])
-- The rest of the group comes again at once; if nothing is left of it, the turn is over.
local function refuse(answer)
    if holder and #transactions == 1 then
        hand_over()
    end
    return answer
end
for t, transaction in ipairs(transactions) do
    local lease = transaction.lease
    if lease ~= '' and redis.call('HGET', p .. 'leases', lease) ~= ARGV[1] .. ' ' .. transaction.token then
        return refuse({ 'lost', tostring(t - 1) })
    end
    for i, change in ipairs(transaction.changes) do
        if not changes[change.kind](change) then
            return refuse({ 'conflict', tostring(t - 1), tostring(i - 1) })
        end
    end
end

for _, key in ipairs(order) do
    local write = staged[key]
    if write.value then
        redis.call('HSET', p .. write.hash, write.field, write.value)
    else
        redis.call('HDEL', p .. write.hash, write.field)
    end
end
-- The indexes of grants: by principal, by target, and those that are not over.
for _, c in ipairs(later) do
    local open = c.open and 'ZADD' or 'ZREM'
    local function index(name, call)
        if call == 'ZADD' then
            redis.call('ZADD', p .. name, 0, c.key)
        else
            redis.call('ZREM', p .. name, c.key)
        end
    end
    index('all', 'ZADD')
    index('of:' .. c.principal, 'ZADD')
    index('open', open)
    for _, target in ipairs(c.targets) do
        index('on:' .. target, 'ZADD')
        index('open:' .. target, open)
        local lease = redis.call('HGET', p .. 'leases', target)
        news.targets[#news.targets + 1] = { target, lease and string.match(lease, '^(%S+)') or '' }
    end
end
for i = 7, #ARGV do
    redis.call('RPUSH', p .. 'audit', ARGV[i])
end
redis.call('SET', p .. 'head', ARGV[3])
news.kind, news.by, news.before, news.after = 'changed', ARGV[1], head, ARGV[3]
-- An empty table would be written as an object, and not as a list.
for _, name in ipairs({ 'grants', 'targets', 'agents' }) do
    if #news[name] == 0 then
        news[name] = nil
    end
end
redis.call('PUBLISH', p .. 'news', cjson.encode(news))
if holder then
    hand_over()
end
return { 'ok' }
