-- Locks or unlocks a job, which one member does at a time.
--
-- KEYS[1]: the prefix of every key. ARGV: the membership, the job, and 'begin' or 'end'.
-- Answers 'fenced' if the membership has ended; 'busy' if another member has locked the job; else 'ok'.
local p, me, job = KEYS[1], ARGV[1], ARGV[2]
local locked_by = redis.call('HGET', p .. 'locks', job)
if ARGV[3] == 'end' then
    if locked_by == me then
        redis.call('HDEL', p .. 'locks', job)
    end
    return 'ok'
end
if redis.call('EXISTS', p .. 'alive:' .. me) == 0 then
    return 'fenced'
end
if locked_by and redis.call('EXISTS', p .. 'alive:' .. locked_by) == 1 then
    return 'busy'
end
redis.call('HSET', p .. 'locks', job, me)
return 'ok'
