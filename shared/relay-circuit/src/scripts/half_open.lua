-- Ends the open time (and a wait) now: the next delivery is the probe. KEYS: hash, open set, probe set, wait set.
-- ARGV: endpoint, channel. Returns 1 where the circuit was open.

local hash, open_set, probe_set, wait_set = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local endpoint, channel = ARGV[1], ARGV[2]
local now = now_ms()
local is_open = state_of(hash, now) ~= 'closed'
if is_open then
  redis.call('HSET', hash, 'until', now)
  redis.call('HDEL', hash, 'probe_until')
  redis.call('ZADD', open_set, now, endpoint)
  redis.call('ZREM', probe_set, endpoint)
end
redis.call('ZREM', wait_set, endpoint)
announce(channel, endpoint, 'half_open', 0)
return is_open and 1 or 0
