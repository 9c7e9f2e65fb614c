-- What all scripts share; put before each of them. Times are Redis's own, in milliseconds: no pod's clock counts.
-- The hash of an endpoint is the truth; the sorted sets (by the time they end) are what pods read every 2 s.

local function now_ms()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local function announce(channel, endpoint, what, ms)
  redis.call('PUBLISH', channel, endpoint .. ' ' .. what .. ' ' .. math.max(0, math.floor(ms)))
end

-- Opening forgets the counts: they begin anew after the recovery.
local function open_circuit(hash, open_set, probe_set, endpoint, open_ms, keep_ms, now)
  redis.call('DEL', hash)
  redis.call('HSET', hash, 'state', 'open', 'until', now + open_ms)
  redis.call('PEXPIRE', hash, open_ms + keep_ms)
  redis.call('ZADD', open_set, now + open_ms, endpoint)
  redis.call('ZREM', probe_set, endpoint)
end

local function close_circuit(hash, open_set, probe_set, endpoint)
  redis.call('DEL', hash)
  redis.call('ZREM', open_set, endpoint)
  redis.call('ZREM', probe_set, endpoint)
end

-- The word for what the hash says, and how long it still holds.
local function state_of(hash, now)
  local found = redis.call('HMGET', hash, 'state', 'until', 'probe_until')
  if found[1] ~= 'open' then
    return 'closed', 0
  end
  if found[3] and tonumber(found[3]) > now then
    return 'probing', tonumber(found[3]) - now
  end
  return 'open', math.max(0, tonumber(found[2]) - now)
end
