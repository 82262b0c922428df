-- This function stands before the scripts that answer the head of the audit log.
--
-- Answers the head; with 'other ' before it if the log does not have `known`, a head that the member knows to be in it, at its
-- number. An empty `known` is in every log. Each record is a line with its hash; a quotation mark in a text of it is escaped.
local function head_beside(p, known)
    local head = redis.call('GET', p .. 'head') or ''
    local number, hash = string.match(known, '^(%d+) (%x+)$')
    if head == known or not number then
        return head
    end
    -- The records up to the base have left the log. What a member knew that long ago is in the segments, and cannot be compared.
    local base = redis.call('GET', p .. 'base') or ''
    local first = tonumber(string.match(base, '^(%d+)') or '0')
    if tonumber(number) < first or base == known then
        return head
    end
    if tonumber(number) == first then
        return 'other ' .. head
    end
    local line = redis.call('LINDEX', p .. 'audit', tonumber(number) - first - 1)
    if line and string.find(line, '"hash":"' .. hash .. '"', 1, true) then
        return head
    end
    return 'other ' .. head
end
