-- Begins or ends a job that one member does at a time.
--
-- KEYS[1]: what every key begins with. ARGV: the membership, the job, and 'begin' or 'end'.
-- Answers 'fenced' where the membership has ended; 'busy' where somebody else is at it; else 'ok'.
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
