-- Locks or unlocks a job, which one member does at a time.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the job, and 'begin' or 'end'.
-- Answers 'fenced' if the membership has ended; 'busy' if another member has locked the job; else 'ok'.
local p, me, job = KEYS[1], ARGV[1], ARGV[2]
local at_it = redis.call('HGET', p .. 'jobs', job)
if ARGV[3] == 'end' then
    if at_it == me then
        redis.call('HDEL', p .. 'jobs', job)
    end
    return 'ok'
end
if redis.call('EXISTS', p .. 'alive:' .. me) == 0 then
    return 'fenced'
end
if at_it and redis.call('EXISTS', p .. 'alive:' .. at_it) == 1 then
    return 'busy'
end
redis.call('HSET', p .. 'jobs', job, me)
return 'ok'
