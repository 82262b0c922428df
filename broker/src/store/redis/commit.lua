-- Applies a group of transactions or none of it.
--
-- KEYS[1]: what every key begins with. ARGV: whose membership, the head that the records were made after, the head after
-- them, the transactions as JSON, and the records of the audit log, a line each.
-- Answers 'ok'; 'fenced' where the membership has ended; 'moved' where the store is elsewhere or not here yet; 'head' and
-- what it is; 'lost' and the place, from 0, of a transaction whose lease is another's; or 'conflict' and the places of the
-- transaction and the change that cannot be made. Nothing is written before everything was looked at.
local p = KEYS[1]
if redis.call('EXISTS', p .. 'alive:' .. ARGV[1]) == 0 then
    return { 'fenced' }
end
if redis.call('EXISTS', p .. 'moved', p .. 'incomplete') > 0 then
    return { 'moved' }
end
local head = redis.call('GET', p .. 'head') or ''
if head ~= ARGV[2] then
    return { 'head', head }
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
-- Where the others have to look.
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

for t, transaction in ipairs(cjson.decode(ARGV[4])) do
    local lease = transaction.lease
    if lease ~= '' and redis.call('HGET', p .. 'leases', lease) ~= ARGV[1] .. ' ' .. transaction.token then
        return { 'lost', tostring(t - 1) }
    end
    for i, change in ipairs(transaction.changes) do
        if not changes[change.kind](change) then
            return { 'conflict', tostring(t - 1), tostring(i - 1) }
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
-- Where grants are found: by who asked, by target, and those that are not over.
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
for i = 5, #ARGV do
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
return { 'ok' }
